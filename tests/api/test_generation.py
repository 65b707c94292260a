"""From events of the backend to an answer: prompts, choices, stops, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from service.errors import ContextLengthError, OverloadedError, UnavailableError
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api import fakes
from tests.api.fakes import BEGIN, COMPLETIONS, END, Json, Script, ScriptedBackend, in_turn, say, step, tokens, wait
from tests.api.sse_bodies import added_up, essence, events_of


async def complete(body: Json, *scripts: Script | Exception) -> tuple[httpx.Response, ScriptedBackend]:
    backend = ScriptedBackend(*scripts)
    return await fakes.post(COMPLETIONS, body, backend), backend


def fail(request: GenerateRequest) -> Iterator[TokenEvent]:
    yield TokenEvent(request_id=request.request_id, finish_reason=FinishReason.ERROR, error="NaN in layer 3")


def abort(request: GenerateRequest) -> Iterator[TokenEvent]:
    yield TokenEvent(request_id=request.request_id, finish_reason=FinishReason.ABORT)


def end_early(request: GenerateRequest) -> Iterator[TokenEvent]:
    yield step(request, [65])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (OverloadedError("The queue is full.", retry_after_s=1.25), 429, "rate_limit_exceeded"),
        (UnavailableError("The server is draining."), 503, "service_unavailable"),
        (ContextLengthError("It does not fit the KV cache.", param="prompt"), 400, "context_length_exceeded"),
        (fail, 500, "engine_error"),
        (abort, 503, "service_unavailable"),
        (RuntimeError("secret"), 500, "internal_error"),
    ],
)
async def test_what_fails_before_the_first_token_is_an_http_error(
    script: Script | Exception, status: int, code: str, stream: bool
) -> None:
    """The status tells it, also where a stream was asked for, and the reasons of a 5xx stay in the log."""
    answer, _ = await complete({"prompt": "a", "stream": stream}, script)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.headers["content-type"] == "application/json"
    assert "secret" not in answer.text
    assert "NaN" not in answer.text


async def test_an_overload_says_when_to_come_back() -> None:
    """Seconds for everyone, rounded up, and milliseconds for clients that know better."""
    answer, _ = await complete({"prompt": "a"}, OverloadedError("Full.", retry_after_s=1.25))

    assert answer.headers["retry-after"] == "2"
    assert answer.headers["retry-after-ms"] == "1250"
    assert answer.headers["x-should-retry"] == "true"
    assert answer.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("failure", "code"),
    [(fail, "engine_error"), (abort, "service_unavailable"), (end_early, "engine_error")],
)
async def test_a_failure_within_a_stream_is_an_event(failure: Script, code: str) -> None:
    """It has the envelope of an HTTP error, and [DONE] still comes last."""
    answer, backend = await complete({"prompt": "a", "stream": True}, in_turn(end_early, failure))
    first, *_, error = events_of(answer)

    assert answer.status_code == 200
    assert first["choices"][0]["text"] == "A"
    assert error["error"]["code"] == code
    assert error["error"].keys() == {"message", "type", "param", "code"}
    assert len(backend.closed) == 1


async def test_one_failing_sequence_fails_the_request() -> None:
    """A body with fewer choices than asked for would be a lie."""
    answer, backend = await complete({"prompt": "a", "n": 2}, in_turn(say("x", index=1), fail))

    assert answer.status_code == 500
    assert len(backend.closed) == 1


async def test_prompts_are_admitted_together_or_not_at_all() -> None:
    """When the queue is full for the third prompt, the first two are closed before anything was read from them."""
    answer, backend = await complete(
        {"prompt": ["a", "b", "c"]}, say("x"), say("y"), OverloadedError("Full.", retry_after_s=1)
    )

    assert answer.status_code == 429
    assert sorted(backend.closed) == [request.request_id for request in backend.requests]
    assert [stream.num_read for stream in backend.streams] == [0, 0]


async def test_a_failing_prompt_closes_the_others() -> None:
    """The prompts that wait do not outlive the one that failed."""
    answer, backend = await complete({"prompt": ["a", "b", "c"]}, wait, fail, wait)

    assert answer.status_code == 500
    assert sorted(backend.closed) == [request.request_id for request in backend.requests]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "token_ids"),
    [
        ("ab", [[BEGIN, 97, 98]]),
        (["a", "b"], [[BEGIN, 97], [BEGIN, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
        ("", [[BEGIN]]),
    ],
)
async def test_the_forms_of_a_prompt(prompt: Any, token_ids: list[list[int]], stream: bool) -> None:
    """Text and token ids, alone or in lists; choice = prompt × n + sequence."""
    body = {"prompt": prompt, "n": 2, "stream": stream, "stream_options": {"include_usage": True} if stream else None}
    scripts = [in_turn(say(f"{number}a"), say(f"{number}b", index=1)) for number in range(len(token_ids))]
    answer, backend = await complete(body, *scripts)
    result = added_up(events_of(answer)) if stream else essence(answer.json())

    assert [[*request.prompt_token_ids] for request in backend.requests] == token_ids
    assert len({request.request_id for request in backend.requests}) == len(token_ids)
    assert [choice["text"] for choice in result["choices"]] == [
        f"{number}{letter}" for number in range(len(token_ids)) for letter in "ab"
    ]
    assert result["usage"]["prompt_tokens"] == sum(map(len, token_ids))


async def test_a_stop_string_closes_the_request_when_every_choice_is_done() -> None:
    """The first choice to stop waits for the other; the engine is not read beyond the last stop."""
    script = in_turn(
        lambda request: [step(request, [*b"one."], index=0), step(request, [*b"more"], index=0)],
        lambda request: [step(request, [*b"two. and more"], index=1)],
        wait,
    )
    answer, backend = await complete({"prompt": "a", "n": 2, "stop": "."}, script)
    result = essence(answer.json())

    assert [choice["text"] for choice in result["choices"]] == ["one", "two"]
    assert [choice["finish_reason"] for choice in result["choices"]] == ["stop", "stop"]
    assert result["usage"]["completion_tokens"] == 8
    assert backend.streams[0].num_read == 3
    assert len(backend.closed) == 1


async def test_stop_strings_do_not_count_before_min_tokens() -> None:
    """The first of two occurrences is within the minimum and is shown."""
    body = {"prompt": "a", "stop": "b", "min_tokens": 2}
    answer, _ = await complete(body, say("abcbd"))

    assert essence(answer.json())["choices"][0]["text"] == "abc"


async def test_a_stop_string_that_spans_the_minimum_does_not_match() -> None:
    """Only text after the minimum is searched."""
    answer, _ = await complete({"prompt": "a", "stop": "bc", "min_tokens": 2}, say("abcd"))

    assert essence(answer.json())["choices"][0]["text"] == "abcd"


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "ab")])
async def test_a_stop_token_is_shown_only_on_request(include: bool, text: str) -> None:
    """The last token of a sequence that ends with STOP is the stop token: hidden unless asked for."""
    body = {"prompt": "a", "stop_token_ids": [98], "include_stop_str_in_output": include}
    answer, _ = await complete(body, lambda request: [step(request, [*b"ab"], finish=FinishReason.STOP)])

    assert essence(answer.json())["choices"][0]["text"] == text


async def test_cached_tokens_are_counted_once_per_prompt() -> None:
    """Sequences of one prompt share its hit; hits of several prompts add up; later events repeat the number."""

    def script(request: GenerateRequest) -> Iterator[TokenEvent]:
        for index in (0, 1, 0, 1):
            yield replace(step(request, [65], index=index), num_prefix_hit_tokens=4 if index == 0 else 9)
        for index in (0, 1):
            yield replace(step(request, [END], index=index, finish=FinishReason.STOP), num_prefix_hit_tokens=4)

    answer, _ = await complete({"prompt": ["a", "b"], "n": 2}, script)

    assert answer.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}


@pytest.mark.parametrize(("echo", "text"), [(False, "\ufffdA"), (True, "€A")])
async def test_a_prompt_that_ends_within_a_character(echo: bool, text: str) -> None:
    """None of the prompt is shown where it is not asked for, though the first token completes its last character."""
    prompt, rest = [*"€".encode()[:2]], "€".encode()[2]
    answer, _ = await complete(
        {"prompt": prompt, "echo": echo},
        lambda request: [step(request, [rest, ord("A")], finish=FinishReason.LENGTH)],
    )

    assert answer.json()["choices"][0]["text"] == text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 0])
async def test_scoring_a_prompt(logprobs: int | None, stream: bool) -> None:
    """max_tokens 0 with echo gives the prompt back, with log probabilities only if asked for, and generates nothing."""
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    body = {"prompt": [97, 98], "max_tokens": 0, "echo": True, "logprobs": logprobs, **options}
    answer, backend = await complete(body, lambda request: [step(request, [], finish=FinishReason.LENGTH)])
    result = added_up(events_of(answer)) if stream else essence(answer.json())
    (choice,) = result["choices"]

    assert choice["text"] == "ab"
    assert backend.requests[0].sampling.max_tokens == 0
    assert result["usage"]["completion_tokens"] == 0
    assert choice["logprobs"] == (
        None
        if logprobs is None
        else {
            "tokens": ["a", "b"],
            "token_logprobs": [None, -24.5],
            "top_logprobs": [None, {"b": -24.5}],
            "text_offset": [0, 1],
        }
    )


async def test_a_prompt_that_is_done_is_closed_while_others_go_on() -> None:
    """A stop string frees the engine at once, not when the last prompt of the request has ended."""
    backend = ScriptedBackend(in_turn(tokens(b"a."), wait), wait)
    request = asyncio.create_task(fakes.post(COMPLETIONS, {"prompt": ["a", "b"], "stop": "."}, backend))
    await backend.until(lambda: bool(backend.closed))

    assert backend.closed == [backend.requests[0].request_id]
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert len(backend.closed) == 2
