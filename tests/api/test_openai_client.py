"""The stock `openai` client, unchanged but for its base URL, against a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionStreamOptionsParam

from service.api.app import create_app
from service.errors import OverloadedError, UnavailableError
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import MODEL_ID, Script, ScriptedBackend, in_turn, make_state, say, serving, step

HELLO = "Hello, wörld 😀"


@asynccontextmanager
async def client_of(
    *scripts: Script | Exception, max_retries: int = 0, path: str = "/v1"
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(create_app(make_state(ScriptedBackend(*scripts)))) as port,
        openai.DefaultAsyncHttpxClient(trust_env=False) as http,
        openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}{path}", api_key="-", http_client=http, max_retries=max_retries
        ) as client,
    ):
        yield client


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
async def test_chat(path: str) -> None:
    """A chat completion has its text, reason, usage and request id; the base URL may end with a slash."""
    async with client_of(say(HELLO), path=path) as client:
        answer = await client.chat.completions.create(model=MODEL_ID, messages=[{"role": "user", "content": "hi"}])

    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.created == 1_700_000_001
    assert answer.model == MODEL_ID
    assert answer.system_fingerprint == "headcount-1.2.3"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == HELLO
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("user:hi") + 1 + len("assistant:")
    assert answer.usage.completion_tokens == len(HELLO.encode()) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id is not None


async def test_an_answer_can_be_sent_back() -> None:
    """The message that came is a valid part of the next request, as every chat program does it."""
    async with client_of(say(HELLO)) as client:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
        answer = await client.chat.completions.create(model=MODEL_ID, messages=messages)
        whole: Any = answer.choices[0].message.model_dump()
        turns = [*messages, answer.choices[0].message, whole, *messages]
        again = await client.chat.completions.create(model=MODEL_ID, messages=cast("Any", turns))

    assert again.choices[0].message.content == HELLO


async def test_the_order_of_a_chat_stream() -> None:
    """Role, then text, then the reason, then the usage; every chunk has the same head, and only the last has usage."""
    async with client_of(say(HELLO, finish=FinishReason.LENGTH)) as client:
        stream = await client.chat.completions.create(
            model=MODEL_ID,
            messages=[{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    opening, *texts, ending, usage = chunks

    assert (opening.choices[0].delta.role, opening.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == HELLO
    assert all(chunk.choices[0].delta.content for chunk in texts)
    assert all("\ufffd" not in (chunk.choices[0].delta.content or "") for chunk in texts)
    assert all(chunk.choices[0].finish_reason is None for chunk in (opening, *texts))
    assert ending.choices[0].delta.content is None
    assert ending.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == len(HELLO.encode())
    assert {chunk.usage for chunk in chunks[:-1]} == {None}
    assert {(chunk.id, chunk.created, chunk.model, chunk.system_fingerprint, chunk.object) for chunk in chunks} == {
        (usage.id, 1_700_000_001, MODEL_ID, "headcount-1.2.3", "chat.completion.chunk")
    }


async def test_no_usage_unless_asked_for() -> None:
    """Without include_usage the last chunk is the one with the reason."""
    async with client_of(say("x")) as client:
        stream = await client.completions.create(model=MODEL_ID, prompt="hi", stream=True)
        chunks = [chunk async for chunk in stream]

    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


async def test_usage_so_far_in_every_chunk() -> None:
    """With continuous_usage_stats, an extension that load testers ask for, each chunk counts the tokens so far."""
    async with client_of(say("abc", finish=FinishReason.LENGTH)) as client:
        stream = await client.chat.completions.create(
            model=MODEL_ID,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options=cast("ChatCompletionStreamOptionsParam", {"continuous_usage_stats": True}),
        )
        usages = [chunk.usage async for chunk in stream]

    counts = [usage.completion_tokens for usage in usages if usage is not None]
    assert len(counts) == len(usages) > 4
    assert counts == sorted(counts)
    assert (counts[1], counts[-1]) == (1, 3)


async def test_several_choices() -> None:
    """Choices keep their index, streamed or not."""
    script = in_turn(say("one", index=0), say("two", index=1))
    async with client_of(script) as client:
        answer = await client.completions.create(model=MODEL_ID, prompt="hi", n=2)
        texts = {0: "", 1: ""}
        async for chunk in await client.completions.create(model=MODEL_ID, prompt="hi", n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text

    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == ["one", "two"]
    assert texts == {0: "one", 1: "two"}


async def test_chat_log_probabilities() -> None:
    """Each token with its bytes and alternatives; the bytes are whole where the tokens cut a character."""
    async with client_of(say("é", finish=FinishReason.LENGTH)) as client:
        answer = await client.chat.completions.create(
            model=MODEL_ID, messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2
        )
        without = await client.chat.completions.create(
            model=MODEL_ID, messages=[{"role": "user", "content": "hi"}], logprobs=True
        )
    logprobs = answer.choices[0].logprobs

    assert logprobs is not None
    assert logprobs.content is not None
    assert bytes(byte for token in logprobs.content for byte in token.bytes or ()).decode() == "é"
    assert [token.token for token in logprobs.content] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert [token.logprob for token in logprobs.content] == [-195 / 4, -169 / 4]
    assert [top.token for top in logprobs.content[0].top_logprobs] == ["A", "B"]
    assert without.choices[0].logprobs is not None
    assert [token.top_logprobs for token in without.choices[0].logprobs.content or ()] == [[], []]


async def test_completion_log_probabilities_with_echo() -> None:
    """Prompt and output in one text and four aligned lists; nothing precedes the first token."""
    async with client_of(say("cd", finish=FinishReason.LENGTH)) as client:
        answer = await client.completions.create(
            model=MODEL_ID, prompt="ab", echo=True, logprobs=1, extra_body={"add_special_tokens": False}
        )
    logprobs = answer.choices[0].logprobs

    assert answer.choices[0].text == "abcd"
    assert logprobs is not None
    assert logprobs.tokens == ["a", "b", "c", "d"]
    assert logprobs.token_logprobs == [None, -24.5, -24.75, -25.0]
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[1:3] == [{"A": -65 / 8, "b": -24.5}, {"A": -65 / 8, "c": -24.75}]


async def test_errors_are_the_clients_own() -> None:
    """Each kind of failure raises the exception that client code expects, with code, param and request id."""
    async with client_of(say("x")) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            await client.completions.create(model=MODEL_ID, prompt="hi", max_tokens=1000)
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.models.retrieve("other")
    async with client_of(UnavailableError("The server is draining.")) as client:
        with pytest.raises(openai.InternalServerError) as unavailable:
            await client.completions.create(model=MODEL_ID, prompt="hi")

    assert (bad.value.code, bad.value.param) == ("context_length_exceeded", "prompt")
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id is not None
    assert unknown.value.code == "model_not_found"
    assert unavailable.value.status_code == 503


async def test_a_failure_within_a_stream_raises() -> None:
    """The text before it has arrived."""

    def fail_later(request: GenerateRequest) -> Iterator[TokenEvent]:
        yield step(request, [*b"be"])
        yield TokenEvent(request_id=request.request_id, finish_reason=FinishReason.ERROR, error="broken")

    async with client_of(fail_later) as client:
        stream = await client.completions.create(model=MODEL_ID, prompt="hi", stream=True)
        first = await anext(stream)
        with pytest.raises(openai.APIError, match="failed to process"):
            await anext(stream)

    assert first.choices[0].text == "be"


async def test_the_client_retries_an_overload() -> None:
    """It honours the delay that it is given and gets its answer on the second attempt."""
    async with client_of(OverloadedError("Full.", retry_after_s=0.001), say("x"), max_retries=1) as client:
        answer = await client.completions.create(model=MODEL_ID, prompt="hi")

    assert answer.choices[0].text == "x"


async def test_models() -> None:
    """The list has the served model; its id, slash included, retrieves it."""
    async with client_of(say("x")) as client:
        (model,) = [model async for model in client.models.list()]
        same = await client.models.retrieve(model.id)

    assert (model.id, model.object, model.created, model.owned_by) == (MODEL_ID, "model", 1_700_000_000, "headcount")
    assert same == model
