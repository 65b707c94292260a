"""The stock `anthropic` client, unchanged but for its base URL, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anthropic
import pytest
from pydantic import BaseModel

from service.api.app import create_app
from service.errors import OverloadedError
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import MODEL_ID, Script, ScriptedBackend, in_turn, make_state, say, serving, step, tokens
from tests.api.obedient import CALLS, follow, tool_tokenizer
from tests.api.test_messages import HI, TOOLS

HELLO = "Hello, wörld 😀"
ASK: dict[str, Any] = {"model": MODEL_ID, "max_tokens": 110, "messages": HI}


@asynccontextmanager
async def client_of(*scripts: Script | Exception, max_retries: int = 0) -> AsyncIterator[anthropic.AsyncAnthropic]:
    state = make_state(ScriptedBackend(*scripts), tokenizer=tool_tokenizer())
    async with (
        serving(create_app(state)) as port,
        anthropic.DefaultAsyncHttpxClient(trust_env=False) as http,
        anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{port}", api_key="-", http_client=http, max_retries=max_retries
        ) as client,
    ):
        yield client


async def test_a_message() -> None:
    """It has its text, stop reason, usage and request id."""
    async with client_of(say(HELLO)) as client:
        message = await client.messages.create(**ASK)

    assert message.type == "message"
    assert message.model == MODEL_ID
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].type == "text"
    assert message.content[0].text == HELLO
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens == len(HELLO.encode()) + 1
    assert message._request_id is not None


async def test_a_stream() -> None:
    """The client's own helper puts the message together; the text comes in pieces."""
    async with client_of(say(HELLO, finish=FinishReason.LENGTH)) as client, client.messages.stream(**ASK) as stream:
        pieces = [text async for text in stream.text_stream]
        message = await stream.get_final_message()

    assert "".join(pieces) == HELLO
    assert len(pieces) > 5
    assert message.content[0].type == "text"
    assert message.content[0].text == HELLO
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == len(HELLO.encode())


async def test_stop_sequences() -> None:
    """The one that ended the message is told, and is not part of it."""
    async with client_of(say(HELLO)) as client:
        message = await client.messages.create(**ASK, stop_sequences=["never", ", w"])

    assert message.content[0].type == "text"
    assert message.content[0].text == "Hello"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", ", w")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_tools(is_stream: bool) -> None:
    """Calls come with their input, whole and streamed, and go back with their results."""
    async with client_of(follow(CALLS), say("Sunny.")) as client:
        if is_stream:
            async with client.messages.stream(**ASK, tools=cast("Any", TOOLS)) as stream:
                message: Any = await stream.get_final_message()
        else:
            message = await client.messages.create(**ASK, tools=cast("Any", TOOLS))
        calls = [block for block in message.content if block.type == "tool_use"]
        results: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "?"} for call in calls]
        again: Any = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        answer = await client.messages.create(model=MODEL_ID, max_tokens=20, messages=again)

    assert message.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [("get_weather", {"city": "Köln"}), ("now", {})]
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Sunny."


class Place(BaseModel):
    city: str


async def test_parse_gives_an_object_of_the_model() -> None:
    """The client's structured output."""
    async with client_of(follow('{"city": "Ulm"}')) as client:
        message = await client.messages.parse(**ASK, output_format=Place)

    assert message.parsed_output == Place(city="Ulm")


async def test_tokens_are_counted() -> None:
    """As many as a message would have."""
    async with client_of(say("x")) as client:
        counted = await client.messages.count_tokens(model=MODEL_ID, messages=cast("Any", HI))
        message = await client.messages.create(**ASK)

    assert counted.input_tokens == message.usage.input_tokens


async def test_errors_are_the_clients_own() -> None:
    """Each with the message of the server."""
    async with client_of(OverloadedError("The queue is full.", retry_after_s=1)) as client:
        with pytest.raises(anthropic.BadRequestError, match="max_tokens must be at least 1"):
            await client.messages.create(**{**ASK, "max_tokens": 0})
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await client.messages.create(**{**ASK, "model": "gpt-9"})
        with pytest.raises(anthropic.NotFoundError, match="Invalid URL"):
            await client.messages.batches.list()
        with pytest.raises(anthropic.APIStatusError, match="queue is full") as caught:
            await client.messages.create(**ASK)

    assert caught.value.status_code == 529
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "The queue is full."},
    }


async def test_a_full_queue_is_tried_again() -> None:
    """After the time that the server asks for."""
    async with client_of(OverloadedError("Full.", retry_after_s=0.001), say("Hi"), max_retries=1) as client:
        message = await client.messages.create(**ASK)

    assert message.content[0].type == "text"
    assert message.content[0].text == "Hi"


async def test_a_failure_within_a_stream_is_raised() -> None:
    """After the text that came before it."""

    def fail(request: GenerateRequest) -> Iterator[TokenEvent]:
        yield step(request, [], finish=FinishReason.ERROR)

    async with client_of(in_turn(tokens(b"He"), fail)) as client, client.messages.stream(**ASK) as stream:
        with pytest.raises(anthropic.APIStatusError, match="failed to process"):
            await stream.get_final_message()
