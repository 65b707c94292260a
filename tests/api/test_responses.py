"""OpenAI's Responses API: what the model is told, what comes back."""

from __future__ import annotations

from typing import Any

import pytest

from service.types import FinishReason
from tests.api.fakes import (
    MODEL_ID,
    Json,
    Script,
    ScriptedBackend,
    make_tokenizer,
    post,
    say,
)
from tests.api.obedient import CALLS, NOW, WEATHER, follow, tool_tokenizer
from tests.api.sse_bodies import named_events_of

PATH = "/v1/responses"
TOOLS = [{"type": "function", **tool["function"]} for tool in (WEATHER, NOW)]
SCHEMA: Json = {"type": "json_schema", "name": "s", "schema": {"type": "object"}}


def ask(**fields: Any) -> Json:
    return {"input": "hi", **fields}


async def told(**fields: Any) -> str:
    """The prompt that the model gets."""
    backend = ScriptedBackend()
    answer = await post(PATH, ask(**fields), backend, tokenizer=tool_tokenizer())
    assert answer.status_code == 200, answer.text
    return make_tokenizer().decode(backend.requests[0].prompt_token_ids, skip_special_tokens=False)


def added_up(events: list[Json]) -> list[Json]:
    """The items that a stream amounts to, put together from its deltas and checked against what its ends say."""
    items: list[Json] = []
    text: list[str] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert event["output_index"] == len(items)
            items.append(event["item"])
            text = []
        elif kind.endswith(".delta"):
            assert event["delta"]
            assert event["item_id"] == items[-1]["id"]
            text.append(event["delta"])
        elif kind == "output_text.done":
            assert event["text"] == "".join(text)
        elif kind == "content_part.done":
            assert event["part"]["text"] == "".join(text)
        elif kind == "function_call_arguments.done":
            assert (event["arguments"], event["name"]) == ("".join(text), items[-1]["name"])
        elif kind == "output_item.done":
            item = event["item"]
            assert (item["id"], event["output_index"]) == (items[-1]["id"], len(items) - 1)
            assert "".join(text) == (item["content"][0]["text"] if item["type"] == "message" else item["arguments"])
            items[-1] = item
    return items


def without_ids(response: Json) -> Json:
    items = [{n: value for n, value in item.items() if n not in ("id", "call_id")} for item in response["output"]]
    return {**{name: value for name, value in response.items() if name != "id"}, "output": items}


async def test_a_response() -> None:
    """An item with the text, and the usage."""
    body = (await post(PATH, ask(), ScriptedBackend(say("Hello")))).json()
    (message,) = body["output"]

    assert body["id"].startswith("resp_")
    assert message.pop("id").startswith("msg_")
    assert (body["object"], body["created_at"], body["model"]) == ("response", 1_700_000_001, MODEL_ID)
    assert (body["status"], body["error"], body["incomplete_details"]) == ("completed", None, None)
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    assert body["usage"] == {
        "input_tokens": 18,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 24,
    }


async def test_a_response_repeats_what_was_asked_for() -> None:
    """With the defaults that were in force."""
    asked = {"metadata": {"a": "b"}, "user": "u", "max_output_tokens": 9, "temperature": 0.5}
    body = (await post(PATH, ask(**asked))).json()
    own = ("id", "object", "created_at", "model", "status", "output", "usage", "error", "incomplete_details")

    assert {name: value for name, value in body.items() if name not in own} == {
        **asked,
        "background": False,
        "instructions": None,
        "max_tool_calls": None,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
    }


@pytest.mark.parametrize(
    ("script", "fields", "status"),
    [
        (say("Hello"), {}, "completed"),
        (say("Hello", finish=FinishReason.LENGTH), {}, "incomplete"),
        (say("wörld 😀"), {}, "completed"),
        (say(""), {}, "completed"),
        (follow(CALLS), {"tools": TOOLS}, "completed"),
        (follow("Sunny."), {"tools": TOOLS}, "completed"),
        (say(CALLS[:-50], finish=FinishReason.LENGTH), {"tools": TOOLS}, "incomplete"),
        (follow('{"a": 1}'), {"text": {"format": SCHEMA}}, "completed"),
        (follow('{"a": 1}'), {"text": {"format": {"type": "json_object"}}}, "completed"),
    ],
)
async def test_a_stream_adds_up_to_the_body(script: Script, fields: Json, status: str) -> None:
    """Its events are numbered; its last one has the same response as a body."""
    whole = await post(PATH, ask(**fields), ScriptedBackend(script), tokenizer=tool_tokenizer())
    stream = await post(PATH, ask(stream=True, **fields), ScriptedBackend(script), tokenizer=tool_tokenizer())
    events = named_events_of(stream)
    created, progress, *between, last = events

    assert whole.json()["status"] == status
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (created["type"], progress["type"]) == ("response.created", "response.in_progress")
    assert created["response"] == progress["response"]
    assert created["response"] == {**last["response"], "status": "in_progress", "output": []} | {
        "usage": None,
        "incomplete_details": None,
    }
    assert last["type"] == f"response.{status}"
    assert without_ids(last["response"]) == without_ids(whole.json())
    assert added_up(between) == last["response"]["output"]


async def test_calls_of_functions() -> None:
    """They are items after the message; one that was cut is incomplete."""
    answer = await post(PATH, ask(tools=TOOLS), ScriptedBackend(follow(CALLS)), tokenizer=tool_tokenizer())
    message, weather, now = answer.json()["output"]

    assert message["content"][0]["text"] == "Wait."
    assert (weather["name"], weather["arguments"], weather["status"]) == (
        "get_weather",
        '{"city": "Köln"}',
        "completed",
    )
    assert (now["name"], now["arguments"]) == ("now", "{}")
    assert weather["call_id"] != now["call_id"]

    cut = say(CALLS[: CALLS.index("Köln")], finish=FinishReason.LENGTH)
    answer = await post(PATH, ask(tools=TOOLS), ScriptedBackend(cut), tokenizer=tool_tokenizer())

    assert [item["status"] for item in answer.json()["output"]] == ["completed", "incomplete"]
    assert answer.json()["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"instructions": "Be brief."}, "system:Be brief.<|end|>user:hi<|end|>assistant:"),
        ({"input": [{"role": "developer", "content": "d"}]}, "system:d<|end|>assistant:"),
        (
            {
                "input": [
                    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                    {
                        "type": "message",
                        "role": "assistant",
                        "id": "msg_1",
                        "status": "completed",
                        "content": [{"type": "output_text", "text": "Wait.", "annotations": [], "logprobs": []}],
                    },
                    {
                        "type": "function_call",
                        "id": "fc_1",
                        "call_id": "1",
                        "name": "get_weather",
                        "arguments": '{"city": "Ulm"}',
                    },
                    {
                        "type": "function_call",
                        "call_id": "2",
                        "name": "get_weather",
                        "arguments": '{"city": "Au"}',
                    },
                    {"type": "function_call_output", "call_id": "1", "output": "rain"},
                    {
                        "type": "function_call_output",
                        "call_id": "2",
                        "output": [{"type": "input_text", "text": "sun"}],
                    },
                    {"type": "function_call", "call_id": "3", "name": "get_weather", "arguments": '{"city": "X"}'},
                ]
            },
            "user:hi<|end|>assistant:Wait.get_weather(Ulm)get_weather(Au)<|end|>tool:rain<|end|>tool:sun<|end|>"
            "assistant:get_weather(X)<|end|>assistant:",
        ),
        ({"tools": TOOLS, "tool_choice": "none"}, "user:hi<|end|>assistant:"),
        ({"tools": TOOLS}, "<tool_call>get_weather;<tool_call>now;user:hi<|end|>assistant:"),
    ],
)
async def test_what_the_model_is_told(fields: Json, prompt: str) -> None:
    """Instructions first, then the items; calls belong to the message before them."""
    assert await told(**fields) == prompt


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "now"}])
async def test_a_choice_of_tools_is_enforced_and_repeated(choice: Any) -> None:
    """By the grammar of the output."""
    text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    body = ask(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    answer = (await post(PATH, body, ScriptedBackend(follow(text)), tokenizer=tool_tokenizer())).json()

    assert answer["output"][0]["name"] == "now"
    assert (answer["tool_choice"], answer["parallel_tool_calls"]) == (choice, False)
    assert answer["tools"][0] == {**TOOLS[0], "strict": None}
