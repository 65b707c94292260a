"""The stock `openai` client's responses, against a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import openai
import pytest
from pydantic import BaseModel

from service.api.app import create_app
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import MODEL_ID, Script, ScriptedBackend, in_turn, make_state, say, serving, step, tokens
from tests.api.obedient import CALLS, follow, tool_tokenizer
from tests.api.test_responses import TOOLS

HELLO = "Hello, wörld 😀"
ASK: dict[str, Any] = {"model": MODEL_ID, "input": "hi"}


@asynccontextmanager
async def client_of(*scripts: Script) -> AsyncIterator[openai.AsyncOpenAI]:
    state = make_state(ScriptedBackend(*scripts), tokenizer=tool_tokenizer())
    async with (
        serving(create_app(state)) as port,
        openai.DefaultAsyncHttpxClient(trust_env=False) as http,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="-", http_client=http, max_retries=0
        ) as client,
    ):
        yield client


async def test_a_response() -> None:
    """It has its text, status and usage."""
    async with client_of(say(HELLO)) as client:
        response = await client.responses.create(**ASK, instructions="Be brief.")

    assert response.output_text == HELLO
    assert (response.status, response.error, response.instructions) == ("completed", None, "Be brief.")
    assert response.usage is not None
    assert response.usage.output_tokens == len(HELLO.encode()) + 1
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert response._request_id is not None


async def test_a_stream() -> None:
    """The client's own helper puts the response together, and every event is one that it knows."""
    async with client_of(say(HELLO)) as client, client.responses.stream(**ASK) as stream:
        events = [event async for event in stream]
        response = await stream.get_final_response()

    assert response.output_text == HELLO
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == HELLO
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_what_was_cut_is_incomplete() -> None:
    """And says why."""
    async with client_of(say(HELLO, finish=FinishReason.LENGTH)) as client:
        response = await client.responses.create(**ASK, max_output_tokens=18)

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("is_stream", [False, True])
async def test_functions(is_stream: bool) -> None:
    """Calls come whole and streamed, and the items go back with their results, as agents do it."""
    async with client_of(follow(CALLS), say("Sunny.")) as client:
        if is_stream:
            async with client.responses.stream(**ASK, tools=cast("Any", TOOLS)) as stream:
                response: Any = await stream.get_final_response()
        else:
            response = await client.responses.create(**ASK, tools=cast("Any", TOOLS))
        calls = [item for item in response.output if item.type == "function_call"]
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "?"} for call in calls]
        turns: Any = [{"role": "user", "content": "hi"}, *response.output, *results]
        again = await client.responses.create(model=MODEL_ID, input=turns, max_output_tokens=20)

    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("get_weather", {"city": "Köln"}),
        ("now", {}),
    ]
    assert again.output_text == "Sunny."


class Place(BaseModel):
    city: str


async def test_parse_gives_an_object_of_the_model() -> None:
    """The client's structured output."""
    async with client_of(follow('{"city": "Ulm"}')) as client:
        response = await client.responses.parse(**ASK, text_format=Place)

    assert response.output_parsed == Place(city="Ulm")


async def test_what_is_not_there_is_refused() -> None:
    """Nothing is stored, so nothing can be gone on with, and answers cannot be asked for later."""
    async with client_of(say(HELLO)) as client:
        for fields in ({"store": True}, {"previous_response_id": "resp_1"}, {"background": True}):
            with pytest.raises(openai.BadRequestError, match="is not supported"):
                await client.responses.create(**ASK, **cast("Any", fields))
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_1")


async def test_a_failure_within_a_stream_is_told() -> None:
    """By the last event."""

    def fail(request: GenerateRequest) -> Iterator[TokenEvent]:
        yield step(request, [], finish=FinishReason.ERROR)

    async with client_of(in_turn(tokens(b"He"), fail)) as client:
        events = [event async for event in await client.responses.create(**ASK, stream=True)]

    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.code == "server_error"
