"""Tools: what the model is told, what it may answer, and how calls come out in bodies and streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import (
    CHAT,
    END,
    MESSAGES,
    Json,
    Script,
    ScriptedBackend,
    make_tokenizer,
    post,
    say,
    step,
)
from tests.api.obedient import CALLS, NOW, WEATHER, follow, obey, tool_tokenizer
from tests.api.sse_bodies import events_of

TOOLS = [WEATHER, NOW]
NAMED = {"type": "function", "function": {"name": "now"}}
ONE_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def ask(**fields: Any) -> Json:
    return {"messages": MESSAGES, "tools": TOOLS, **fields}


def calls_of(message: Json) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message["tool_calls"]]


def added_up(chunks: list[Json]) -> dict[int, Json]:
    """The message and finish reason of each choice of a stream, as a client puts them together."""
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"content": "", "tool_calls": [], "finish_reason": None})
            choice["content"] += part["delta"].get("content", "")
            for delta in part["delta"].get("tool_calls", []):
                if "id" in delta:
                    assert delta["index"] == len(choice["tool_calls"])
                    assert delta["function"]["arguments"] == ""
                    choice["tool_calls"].append({**delta, "function": dict(delta["function"])})
                else:
                    assert delta["function"]["arguments"]
                    choice["tool_calls"][delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
            choice["finish_reason"] = part["finish_reason"]
    return choices


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({}, "<tool_call>get_weather;<tool_call>now;"),
        ({"tool_choice": "auto"}, "<tool_call>get_weather;<tool_call>now;"),
        ({"tool_choice": "required"}, "<tool_call>get_weather;<tool_call>now;"),
        ({"tool_choice": NAMED}, "<tool_call>get_weather;<tool_call>now;"),
        ({"tool_choice": "none"}, ""),
        ({"tools": []}, ""),
        ({"tools": None}, ""),
    ],
)
async def test_what_the_model_is_told(choice: Json, told: str) -> None:
    """The template gets the tools that are offered."""
    backend = ScriptedBackend()
    answer = await post(CHAT, ask(**choice), backend, tokenizer=tool_tokenizer())

    assert answer.status_code == 200, answer.text
    prompt = make_tokenizer().decode(backend.requests[0].prompt_token_ids)
    assert prompt == f"{told}user:hiassistant:"


@pytest.mark.parametrize(
    ("fields", "text", "content", "calls", "reason"),
    [
        ({}, "No need.", "No need.", [], "stop"),
        ({}, "", "", [], "stop"),
        ({}, CALLS, "Wait.", [("get_weather", {"city": "Köln"}), ("now", {})], "tool_calls"),
        ({"tool_choice": "required"}, ONE_CALL, None, [("now", {})], "tool_calls"),
        ({"tool_choice": NAMED}, ONE_CALL, None, [("now", {})], "tool_calls"),
        ({"tool_choice": NAMED, "parallel_tool_calls": False}, ONE_CALL, None, [("now", {})], "tool_calls"),
        ({"stop": "arguments"}, CALLS, 'Wait.<tool_call>\n{"name": "get_weather", "', [], "stop"),
        ({"stop": "city"}, CALLS, "Wait.", None, "stop"),
        ({"max_tokens": 65}, CALLS, "Wait.", None, "length"),
    ],
)
async def test_what_the_model_answers(
    fields: Json, text: str, content: str | None, calls: list[tuple[str, Json]] | None, reason: str
) -> None:
    """Content, calls and reason, in a body and in a stream; a call that was cut is not to be executed."""
    limit = fields.get("max_tokens", 999)
    script = follow(text) if limit > len(text.encode()) else cut(text, limit)
    whole = await post(CHAT, ask(**{"max_tokens": 150, **fields}), ScriptedBackend(script), tokenizer=tool_tokenizer())
    streaming = {"max_tokens": 150, **fields, "stream": True}
    stream = await post(CHAT, ask(**streaming), ScriptedBackend(script), tokenizer=tool_tokenizer())

    assert whole.status_code == 200, whole.text
    [choice] = whole.json()["choices"]
    message = choice["message"]
    added = added_up(events_of(stream))[0]
    assert (message["content"], choice["finish_reason"]) == (content, reason)
    assert (added["content"] or None, added["finish_reason"]) == (content or None, reason)
    written = [call["function"] for call in message.get("tool_calls", [])]
    assert [call["function"] for call in added["tool_calls"]] == written
    if calls is not None:
        assert [(call["name"], json.loads(call["arguments"])) for call in written] == calls
    for call in message.get("tool_calls", []):
        assert call["type"] == "function"
        assert len(call["id"]) == 9
        assert call["id"].isalnum()


def cut(text: str, limit: int) -> Script:
    return say(text.encode()[:limit], finish=FinishReason.LENGTH)


@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 3),
    choice=st.sampled_from(["auto", "required", NAMED]),
    parallel=st.booleans(),
    with_logprobs=st.booleans(),
)
@settings(deadline=None, max_examples=40)
async def test_any_output_that_is_allowed(
    seed: int, n: int, choice: str | Json, parallel: bool, with_logprobs: bool
) -> None:
    """Arguments validate; streamed pieces add up to the body's; n choices keep apart; each token has its score."""
    fields = {"n": n, "tool_choice": choice, "parallel_tool_calls": parallel, "logprobs": with_logprobs}
    backend, again = ScriptedBackend(obey(seed)), ScriptedBackend(obey(seed))
    whole = await post(CHAT, ask(**fields), backend, tokenizer=tool_tokenizer())
    stream = await post(CHAT, ask(**fields, stream=True), again, tokenizer=tool_tokenizer())

    assert whole.status_code == 200, whole.text
    chunks = events_of(stream)
    added = added_up(chunks)
    for body in whole.json()["choices"]:
        message, streamed = body["message"], added[body["index"]]
        calls = calls_of(message) if "tool_calls" in message else []
        assert calls_of(streamed) == calls
        assert streamed["content"] == (message["content"] or "")
        assert streamed["finish_reason"] == body["finish_reason"]
        if body["finish_reason"] == "length":
            continue
        assert body["finish_reason"] == ("tool_calls" if calls else "stop")
        assert calls or choice == "auto"
        assert len(calls) <= 1 or parallel
        for name, arguments in calls:
            assert name == "now" or choice != NAMED
            schema = WEATHER["function"]["parameters"] if name == "get_weather" else {"maxProperties": 0}
            jsonschema.validate(arguments, schema)
        if with_logprobs:
            scores = [
                entry
                for chunk in chunks
                for part in chunk["choices"]
                if part["index"] == body["index"] and part["logprobs"]
                for entry in part["logprobs"]["content"]
            ]
            assert scores == body["logprobs"]["content"]


async def test_tokens_that_arrive_together_are_scored_once() -> None:
    """A reader that falls behind gets content and several calls in one event."""

    def all_at_once(request: GenerateRequest) -> Iterator[TokenEvent]:
        yield step(request, [*CALLS.encode(), END], finish=FinishReason.STOP)

    asked = ask(stream=True, logprobs=True, max_tokens=200)
    chunks = events_of(await post(CHAT, asked, ScriptedBackend(all_at_once), tokenizer=tool_tokenizer()))
    scores = [part["logprobs"] for chunk in chunks for part in chunk["choices"] if part["logprobs"]]

    assert [len(each["content"]) for each in scores] == [len(CALLS.encode()) + 1]
    assert calls_of(added_up(chunks)[0]) == [("get_weather", {"city": "Köln"}), ("now", {})]


async def test_a_model_without_a_format_still_calls_what_it_must() -> None:
    """By grammar alone; left to itself it only speaks."""
    required = await post(CHAT, ask(tool_choice="required"), ScriptedBackend(follow(ONE_CALL)))
    free = ScriptedBackend(say(ONE_CALL))
    auto = await post(CHAT, ask(), free)

    assert calls_of(required.json()["choices"][0]["message"]) == [("now", {})]
    assert free.requests[0].grammar is None
    assert auto.json()["choices"][0]["message"]["content"] == ONE_CALL


async def test_the_setting_overrules_the_template() -> None:
    """tool_parser names the format."""
    text = '[TOOL_CALLS][{"name": "now", "arguments": {}}]'
    answer = await post(CHAT, ask(), ScriptedBackend(follow(text)), tokenizer=tool_tokenizer(), tool_parser="mistral")

    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_call_and_its_result_go_back() -> None:
    """As the answer had them; the template gets the arguments as an object."""
    backend = ScriptedBackend()
    call = {"id": "abc", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "rain"},
    ]
    answer = await post(CHAT, {"messages": turns}, backend, tokenizer=tool_tokenizer())

    assert answer.status_code == 200, answer.text
    prompt = make_tokenizer().decode(backend.requests[0].prompt_token_ids)
    assert prompt == "user:hiassistant:get_weather(Köln)tool:rainassistant:"
