"""OpenAI's Responses API: what is refused, by name, and what fails."""

from __future__ import annotations

from typing import Any

import pytest

from service.types import FinishReason
from tests.api.fakes import Json, ScriptedBackend, complaint, in_turn, post, step, tokens
from tests.api.obedient import tool_tokenizer
from tests.api.sse_bodies import named_events_of
from tests.api.test_responses import PATH, SCHEMA, TOOLS, ask

FAULTS: list[tuple[Json, str, str]] = [
    ({"store": True}, "'store' is not supported.", "store"),
    ({"background": True}, "'background' is not supported.", "background"),
    ({"previous_response_id": "resp_1"}, "'previous_response_id' is not supported.", "previous_response_id"),
    ({"conversation": "conv_1"}, "'conversation' is not supported.", "conversation"),
    ({"include": ["file_search_call.results"]}, "'include' is not supported.", "include"),
    ({"truncation": "auto"}, "'truncation' is not supported.", "truncation"),
    ({"reasoning": {"effort": "high"}}, "'reasoning' is not supported.", "reasoning"),
    ({"text": {"verbosity": "low"}}, "'text.verbosity' is not supported.", "text.verbosity"),
    ({"weather": "good"}, "Unrecognized request argument supplied: weather", "weather"),
    ({"input": []}, "Invalid value for 'input': it must not be empty.", "input"),
    ({"input": 3}, "Invalid value for 'input': expected a string or an array of items.", "input"),
    (
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        "Invalid value for 'input[0]': only items of type message, function_call and function_call_output"
        " are supported.",
        "input[0]",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "Invalid value for 'input[0].content[0]': only parts of type input_text and output_text are supported.",
        "input[0].content[0]",
    ),
    (
        {"tools": [{"type": "web_search"}]},
        "Invalid value for 'tools[0].type': web_search is not supported, only function.",
        "tools[0].type",
    ),
    (
        {"tools": TOOLS, "tool_choice": {"type": "file_search"}},
        "Invalid value for 'tool_choice.type': file_search is not supported, only function.",
        "tool_choice.type",
    ),
    ({"max_output_tokens": 0}, "max_output_tokens must be at least 1.", "max_output_tokens"),
    ({"temperature": 3.0}, "temperature must be between 0 and 2, but is 3.", "temperature"),
    (
        {"text": {"format": {"type": "json_schema", "name": "s"}}},
        "Missing required parameter: 'text.format.schema'.",
        "text.format.schema",
    ),
    (
        {"text": {"format": {"type": "text", "name": "s"}}},
        "It is only for json_schema: 'text.format.name'.",
        "text.format.name",
    ),
]


@pytest.mark.parametrize(("fields", "message", "param"), FAULTS)
async def test_faulty_requests(fields: Json, message: str, param: str) -> None:
    """Each is a 400 that names the field as it was sent."""
    answer = await post(PATH, ask(**fields), tokenizer=tool_tokenizer())

    assert answer.status_code == 400
    assert answer.json() == complaint(message, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {**SCHEMA, "schema": {"type": "array", "uniqueItems": True}}}}, "text.format.schema"),
        ({"tools": [{**TOOLS[1], "parameters": {"type": "array"}}]}, "tools[0].parameters"),
        (
            {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{"}]},
            "input[0].arguments",
        ),
        ({"input": "x" * 300}, "input"),
    ],
)
async def test_what_is_found_out_later_is_named_as_it_was_sent(fields: Json, param: str) -> None:
    """Schemas, arguments and the length of the context."""
    answer = await post(PATH, ask(**fields), tokenizer=tool_tokenizer())

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert param in answer.json()["error"]["message"]


async def test_what_asks_for_nothing_is_accepted() -> None:
    """As agents send it."""
    neutral = {
        "store": False,
        "background": False,
        "include": ["reasoning.encrypted_content"],
        "previous_response_id": None,
        "reasoning": None,
        "stream_options": {"include_obfuscation": False},
        "truncation": "disabled",
        "text": {"verbosity": "medium"},
    }
    assert (await post(PATH, ask(**neutral))).status_code == 200


async def test_a_failure_within_a_stream_is_an_event() -> None:
    """The response has failed, and says so."""

    def fail(request: Any) -> Any:
        yield step(request, [], finish=FinishReason.ERROR)

    answer = await post(PATH, ask(stream=True), ScriptedBackend(in_turn(tokens(b"He"), fail)))
    *_, last = named_events_of(answer)

    assert last["type"] == "response.failed"
    assert (last["response"]["status"], last["response"]["error"]["code"]) == ("failed", "server_error")
