"""Anthropic's API: every mistake and every failure in Anthropic's envelope."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from service.api.intake import Intake
from service.errors import OverloadedError, UnavailableError
from service.types import FinishReason
from tests.api.fakes import Json, ScriptedBackend, in_turn, post, step, tokens
from tests.api.obedient import tool_tokenizer
from tests.api.sse_bodies import named_events_of
from tests.api.test_messages import COUNT, HI, NOW, PATH, TOOLS, WEATHER, ask


def failed(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert body.keys() == {"type", "error"}
    assert body["error"].keys() == {"type", "message"}
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    return answer.status_code, body["error"]["type"], body["error"]["message"]


FAULTS: list[tuple[Json, str]] = [
    ({"max_tokens": None}, "Invalid type for 'max_tokens': expected an integer, but got null instead."),
    ({"max_tokens": 0}, "max_tokens must be at least 1."),
    ({"messages": []}, "Invalid value for 'messages': it must not be empty."),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "Invalid value for 'messages[0].content[0]': only blocks of type text, tool_use and tool_result are supported.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]},
        "Invalid value for 'messages[0].content': user has no tool_use.",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}]},
        "Invalid value for 'messages[0].content': assistant has no tool_result.",
    ),
    (
        {"messages": [*HI, {"role": "assistant", "content": " "}]},
        "Invalid value for 'messages[1].content': the answer goes on with it, so it must have text.",
    ),
    ({"system": 3}, "Invalid value for 'system': expected a string or text blocks."),
    ({"thinking": {"type": "enabled", "budget_tokens": 99}}, "'thinking' is not supported."),
    ({"mcp_servers": [{}]}, "'mcp_servers' is not supported."),
    ({"output_config": {"effort": "max"}}, "'output_config.effort' is not supported."),
    ({"weather": "good"}, "Unrecognized request argument supplied: weather"),
    ({"stop_sequence": []}, "Unrecognized request argument supplied: stop_sequence (did you mean stop_sequences?)"),
    ({"temperature": 3.0}, "temperature must be between 0 and 2, but is 3."),
    (
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        "Invalid value for 'tools[0].type': web_search_20250305 is not supported, only custom.",
    ),
    (
        {"tools": [{**WEATHER, "name": "a b"}]},
        "Invalid value for 'tools[0].name': String should match pattern '^[a-zA-Z0-9_-]{1,64}$'.",
    ),
    ({"tools": [NOW, NOW]}, "The names of tools must differ."),
    ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "Missing required parameter: 'tool_choice.name'."),
    ({"tool_choice": {"type": "any"}}, "tool_choice is only allowed when tools are specified."),
]


@pytest.mark.parametrize(("fields", "message"), FAULTS)
async def test_faulty_requests(fields: Json, message: str) -> None:
    """Each is a 400 that names the field as it was sent."""
    answer = await post(PATH, ask(**fields), tokenizer=tool_tokenizer())

    assert failed(answer) == (400, "invalid_request_error", message)


async def test_a_schema_that_cannot_be_followed() -> None:
    """It is named as it was sent."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    for fields, path in (
        ({"tools": [{**NOW, "input_schema": schema}]}, "tools[0].input_schema"),
        ({"output_config": {"format": {"type": "json_schema", "schema": schema}}}, "output_config.format.schema"),
    ):
        status, kind, message = failed(await post(PATH, ask(**fields), tokenizer=tool_tokenizer()))

        assert (status, kind) == (400, "invalid_request_error")
        assert f"'{path}'" in message


@pytest.mark.parametrize(
    ("path", "content", "status", "kind"),
    [
        (PATH, b"{", 400, "invalid_request_error"),
        (PATH, b"[]", 400, "invalid_request_error"),
        (PATH, b'"' + b"x" * 5000 + b'"', 413, "request_too_large"),
        (PATH, json.dumps(ask(model="gpt-9")).encode(), 404, "not_found_error"),
        ("/v1/messages/batches", b"{}", 404, "not_found_error"),
        (COUNT, b"{}", 400, "invalid_request_error"),
    ],
)
async def test_failures_of_the_protocol(path: str, content: bytes, status: int, kind: str) -> None:
    """Every path below /v1/messages has Anthropic's envelope."""
    assert failed(await post(path, content, intake=Intake(4000)))[:2] == (status, kind)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (OverloadedError("Full.", retry_after_s=2.5), 529, "overloaded_error"),
        (UnavailableError("Draining."), 503, "overloaded_error"),
        (ZeroDivisionError(), 500, "api_error"),
    ],
)
async def test_failures_of_the_server(error: Exception, status: int, kind: str) -> None:
    """A full queue has Anthropic's own status, and says when to come back."""
    answer = await post(PATH, ask(), ScriptedBackend(error))

    assert failed(answer)[:2] == (status, kind)
    assert answer.headers.get("retry-after") == ("3" if status == 529 else None)


async def test_a_failure_within_a_stream_is_an_event() -> None:
    """The last one."""

    def fail(request: Any) -> Any:
        yield step(request, [], finish=FinishReason.ERROR)

    answer = await post(PATH, ask(stream=True), ScriptedBackend(in_turn(tokens(b"He"), fail)))
    *_, last = named_events_of(answer)

    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
