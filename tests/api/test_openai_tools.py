"""The stock `openai` client's own helpers for schemas and tools, against a real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from service.api.app import create_app
from tests.api.fakes import MODEL_ID, Script, ScriptedBackend, make_state, serving
from tests.api.obedient import CALLS, follow, obey, tool_tokenizer

ASK: dict[str, Any] = {"model": MODEL_ID, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200}


class Place(BaseModel):
    city: str = Field(max_length=5)
    kind: Literal["town", "village"]


class Visit(BaseModel):
    place: Place
    notes: list[str] = Field(max_length=2)


class GetWeather(BaseModel):
    """The weather in a city."""

    city: str


class Now(BaseModel):
    """The time."""


TOOLS = [openai.pydantic_function_tool(GetWeather, name="get_weather"), openai.pydantic_function_tool(Now, name="now")]


@asynccontextmanager
async def client_of(script: Script) -> AsyncIterator[openai.AsyncOpenAI]:
    state = make_state(ScriptedBackend(script), tokenizer=tool_tokenizer())
    async with (
        serving(create_app(state)) as port,
        openai.DefaultAsyncHttpxClient(trust_env=False) as http,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", http_client=http) as client,
    ):
        yield client


@pytest.mark.parametrize("seed", range(5))
async def test_parse_gives_an_object_of_the_model(seed: int) -> None:
    """The schema that the client makes of a pydantic model is understood, and any answer is such a model."""
    text = '{"place": {"city": "Ulm", "kind": "town"}, "notes": ["a"]}'
    async with client_of(follow(text) if seed == 0 else obey(seed)) as client:
        answer = await client.chat.completions.parse(**ASK, response_format=Visit)

    assert isinstance(answer.choices[0].message.parsed, Visit)


async def test_tools_in_one_piece() -> None:
    """Calls are parsed into the arguments' models, and can be sent back with their results."""
    async with client_of(follow(CALLS)) as client:
        answer = await client.chat.completions.parse(**ASK, tools=TOOLS)
        message = answer.choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "?"} for call in message.tool_calls or []]
        turns: Any = [*ASK["messages"], message, message.model_dump(), *results]
        again = await client.chat.completions.create(
            **{**ASK, "messages": turns}, tools=TOOLS, max_completion_tokens=90
        )

    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "Wait."
    assert [call.function.parsed_arguments for call in message.tool_calls or []] == [GetWeather(city="Köln"), Now()]
    assert again.choices[0].finish_reason == "tool_calls"


async def test_a_stream_of_tool_calls() -> None:
    """The client's own accumulation gives the calls; their arguments come in pieces."""
    async with client_of(follow(CALLS)) as client, client.chat.completions.stream(**ASK, tools=TOOLS) as stream:
        pieces = [
            event.arguments_delta
            async for event in stream
            if event.type == "tool_calls.function.arguments.delta" and event.index == 0
        ]
        final = await stream.get_final_completion()

    message = final.choices[0].message
    assert final.choices[0].finish_reason == "tool_calls"
    assert message.content == "Wait."
    assert [call.function.parsed_arguments for call in message.tool_calls or []] == [GetWeather(city="Köln"), Now()]
    assert json.loads("".join(pieces)) == {"city": "Köln"}
    assert len([piece for piece in pieces if piece]) > 3


async def test_a_stream_of_json() -> None:
    """Parsed as it grows."""
    text = '{"place": {"city": "Ulm", "kind": "town"}, "notes": ["a"]}'
    async with (
        client_of(follow(text)) as client,
        client.chat.completions.stream(**ASK, response_format=Visit) as stream,
    ):
        final = await stream.get_final_completion()

    assert final.choices[0].message.parsed == Visit(place=Place(city="Ulm", kind="town"), notes=["a"])
