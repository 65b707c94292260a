"""Anthropic's API: what the model is told, what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.types import FinishReason
from tests.api.fakes import MODEL_ID, Json, Script, ScriptedBackend, make_tokenizer, post, say, step
from tests.api.obedient import CALLS, follow, tool_tokenizer
from tests.api.sse_bodies import named_events_of

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
HI: list[Json] = [{"role": "user", "content": "hi"}]
WEATHER: Json = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
NOW: Json = {"name": "now", "type": "custom", "input_schema": {"type": "object", "additionalProperties": False}}
TOOLS = [WEATHER, NOW]


def ask(**fields: Any) -> Json:
    return {"messages": HI, "max_tokens": 110, **fields}


async def told(**fields: Any) -> str:
    """The prompt that the model gets."""
    backend = ScriptedBackend()
    answer = await post(PATH, ask(**fields), backend, tokenizer=tool_tokenizer())
    assert answer.status_code == 200, answer.text
    return make_tokenizer().decode(backend.requests[0].prompt_token_ids, skip_special_tokens=False)


def added_up(events: list[Json]) -> Json:
    """The message that a stream amounts to, but for its id."""
    start, ping, *blocks, delta, stop = events
    assert [event["type"] for event in (start, ping, delta, stop)] == [
        "message_start",
        "ping",
        "message_delta",
        "message_stop",
    ]
    message: Json = {**start["message"], **delta["delta"], "usage": delta["usage"]}
    for event in blocks:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append({**event["content_block"], "parts": []})
        elif event["type"] == "content_block_delta":
            block = message["content"][event["index"]]
            block["parts"].append(event["delta"].get("text", event["delta"].get("partial_json")))
        else:
            assert event == {"type": "content_block_stop", "index": len(message["content"]) - 1}
            block = message["content"][-1]
            whole = "".join(block.pop("parts"))
            block |= {"text": whole} if block["type"] == "text" else {"input": json.loads(whole)}
    return without_ids(message)


def without_ids(message: Json) -> Json:
    content = [{name: value for name, value in block.items() if name != "id"} for block in message["content"]]
    return {**{name: value for name, value in message.items() if name != "id"}, "content": content}


async def test_a_message() -> None:
    """The text is a block; what the prompt cost, and the answer, is in the usage."""
    answer = await post(PATH, ask(), ScriptedBackend(say("Hello")))
    body = answer.json()

    assert answer.headers["request-id"].startswith("req_")
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": MODEL_ID,
        "content": [{"type": "text", "text": "Hello", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 18,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 6,
        },
    }


@pytest.mark.parametrize(
    ("script", "fields", "reason", "stop"),
    [
        (say("Hello"), {}, "end_turn", None),
        (say("Hello", finish=FinishReason.LENGTH), {}, "max_tokens", None),
        (say("Hello"), {"stop_sequences": ["x", "lo"]}, "stop_sequence", "lo"),
        (say("Hello"), {"stop_sequences": ["x"]}, "end_turn", None),
        (say("wörld 😀"), {}, "end_turn", None),
        (say(""), {}, "end_turn", None),
        (follow(CALLS), {"tools": TOOLS}, "tool_use", None),
        (follow("Sunny."), {"tools": TOOLS}, "end_turn", None),
        (follow('{"now": 1}'), {"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "end_turn", None),
    ],
)
async def test_a_stream_adds_up_to_the_body(script: Script, fields: Json, reason: str, stop: str | None) -> None:
    """Both say why the message ended."""
    whole = await post(PATH, ask(**fields), ScriptedBackend(script), tokenizer=tool_tokenizer())
    stream = await post(PATH, ask(stream=True, **fields), ScriptedBackend(script), tokenizer=tool_tokenizer())

    assert (whole.json()["stop_reason"], whole.json()["stop_sequence"]) == (reason, stop)
    assert added_up(named_events_of(stream)) == without_ids(whole.json())


async def test_calls_of_tools() -> None:
    """They are blocks after the text, each with its input as an object."""
    answer = await post(PATH, ask(tools=TOOLS), ScriptedBackend(follow(CALLS)), tokenizer=tool_tokenizer())
    text, weather, now = answer.json()["content"]

    assert text["text"] == "Wait."
    assert (weather["type"], weather["name"], weather["input"]) == ("tool_use", "get_weather", {"city": "Köln"})
    assert (now["type"], now["name"], now["input"]) == ("tool_use", "now", {})
    assert weather["id"] != now["id"]


async def test_a_call_that_is_cut_is_not_in_the_body() -> None:
    """Nobody should run it; the stop reason says why it is not there."""
    cut = CALLS[: CALLS.index("Köln")]
    backend = ScriptedBackend(say(cut, finish=FinishReason.LENGTH))
    answer = await post(PATH, ask(tools=TOOLS), backend, tokenizer=tool_tokenizer())

    assert [block["type"] for block in answer.json()["content"]] == ["text"]
    assert answer.json()["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"system": "Be brief."}, "system:Be brief.<|end|>user:hi<|end|>assistant:"),
        (
            {
                "system": [
                    {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "brief.", "citations": None},
                ]
            },
            "system:Be brief.<|end|>user:hi<|end|>assistant:",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("h", "i")]}]},
            "user:hi<|end|>assistant:",
        ),
        (
            {
                "tools": TOOLS,
                "messages": [
                    *HI,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "text", "text": "Wait."},
                            {"type": "tool_use", "id": "1", "name": "get_weather", "input": {"city": "Ulm"}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "1", "content": "rain"},
                            {"type": "tool_result", "tool_use_id": "2", "content": [{"type": "text", "text": "sun"}]},
                            {"type": "tool_result", "tool_use_id": "3", "is_error": True},
                            {"type": "text", "text": "well?"},
                        ],
                    },
                ],
            },
            "<tool_call>get_weather;<tool_call>now;user:hi<|end|>assistant:Wait.get_weather(Ulm)<|end|>"
            "tool:rain<|end|>tool:sun<|end|>tool:<|end|>user:well?<|end|>assistant:",
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "none"}}, "user:hi<|end|>assistant:"),
        ({"messages": [*HI, {"role": "assistant", "content": "Well, "}]}, "user:hi<|end|>assistant:Well,"),
        (
            {"messages": [*HI, {"role": "system", "content": "!"}, *HI]},
            "user:hi<|end|>system:!<|end|>user:hi<|end|>assistant:",
        ),
    ],
)
async def test_what_the_model_is_told(fields: Json, prompt: str) -> None:
    """System, turns, blocks, calls and their results, in order; the assistant's last turn is gone on with."""
    assert await told(**fields) == prompt


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"type": "any"}, CALLS.removeprefix("Wait.")),
        ({"type": "tool", "name": "now"}, '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        ),
    ],
)
async def test_a_choice_of_tools_is_enforced(choice: Json, text: str) -> None:
    """By the grammar of the output."""
    body = ask(tools=TOOLS, tool_choice=choice)
    answer = await post(PATH, body, ScriptedBackend(follow(text)), tokenizer=tool_tokenizer())

    assert answer.json()["stop_reason"] == "tool_use"


async def test_what_the_prefix_cache_had_is_counted_apart() -> None:
    """As Anthropic does it: the three counts of input add up to the prompt."""

    def script(request: Any) -> Any:
        from dataclasses import replace  # noqa: PLC0415

        yield replace(step(request, [65], finish=FinishReason.LENGTH), num_prefix_hit_tokens=16)

    usage = (await post(PATH, ask(), ScriptedBackend(script))).json()["usage"]

    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (2, 16)


async def test_sampling_parameters_reach_the_engine() -> None:
    """All that Anthropic has."""
    backend = ScriptedBackend()
    await post(PATH, ask(max_tokens=7, temperature=0.5, top_k=3, top_p=0.25), backend)
    sampling = backend.requests[0].sampling

    assert (sampling.max_tokens, sampling.temperature, sampling.top_k, sampling.top_p) == (7, 0.5, 3, 0.25)


async def test_tokens_are_counted_without_an_answer() -> None:
    """As many as the message's usage tells."""
    backend = ScriptedBackend()
    answer = await post(COUNT, {"messages": HI, "tools": TOOLS, "system": "s"}, backend, tokenizer=tool_tokenizer())
    whole = await post(PATH, ask(tools=TOOLS, system="s"), ScriptedBackend(), tokenizer=tool_tokenizer())

    assert answer.json() == {"input_tokens": whole.json()["usage"]["input_tokens"]}
    assert backend.requests == []
