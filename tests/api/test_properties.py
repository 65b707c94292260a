"""A stream adds up to the body of the same request, both are what the tokens say, and no body is our fault."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.app import create_app
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api import test_messages, test_responses
from tests.api.fakes import Json, Script, ScriptedBackend, client_for, make_state, step
from tests.api.sse_bodies import added_up, essence, events_of, named_events_of
from tests.api.strategies import CHAT_BODIES, COMPLETION_BODIES, Sequences, sequences, text_fields


class Stage:
    """One application for all examples of a property: making it takes longer than a request."""

    def __init__(self) -> None:
        self._backend = ScriptedBackend()
        self._app = create_app(make_state(self._backend))

    def post(self, path: str, content: bytes, script: Script) -> httpx.Response:
        async def post() -> httpx.Response:
            async with client_for(self._app) as client:
                return await client.post(path, content=content)

        self._backend.play(script)
        return asyncio.run(post())


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage()


def both_ways(stage: Stage, path: str, body: Json, script: Script) -> tuple[Json, list[Json]]:
    """The body and the chunks of the same request."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    whole = stage.post(path, json.dumps(body).encode(), script)
    stream = stage.post(path, json.dumps({**body, **options}).encode(), script)

    assert (whole.status_code, stream.status_code) == (200, 200), whole.text
    return whole.json(), events_of(stream)


@given(sequences(), text_fields())
def test_a_stream_adds_up_to_the_body(stage: Stage, script: Sequences, fields: Json) -> None:
    """Text, log probabilities, finish reasons and usage of completions are the same either way."""
    body = {"prompt": "p€", "n": len(script.token_ids), **fields}
    whole, chunks = both_ways(stage, "/v1/completions", body, script)

    assert added_up(chunks) == essence(whole)


@given(sequences(), text_fields(), st.none() | st.integers(0, 2))
def test_a_chat_stream_adds_up_to_the_body(
    stage: Stage, script: Sequences, fields: Json, top_logprobs: int | None
) -> None:
    """The same of chat."""
    fields = {name: value for name, value in fields.items() if name not in {"logprobs", "echo"}}
    if top_logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": top_logprobs}
    body = {"messages": [{"role": "user", "content": "hi"}], "n": len(script.token_ids), **fields}
    whole, chunks = both_ways(stage, "/v1/chat/completions", body, script)

    assert added_up(chunks) == essence(whole)


@given(sequences(), st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3))
def test_a_stream_of_messages_adds_up_to_the_body(stage: Stage, script: Sequences, stop: list[str]) -> None:
    """The same of Anthropic's API."""
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 30, "stop_sequences": stop}
    whole, stream = (
        stage.post("/v1/messages", json.dumps({**body, "stream": flag}).encode(), only_first(script))
        for flag in (False, True)
    )

    assert test_messages.added_up(named_events_of(stream)) == test_messages.without_ids(whole.json())


@given(sequences())
def test_a_stream_of_a_response_adds_up_to_the_body(stage: Stage, script: Sequences) -> None:
    """The same of OpenAI's responses."""
    whole, stream = (
        stage.post("/v1/responses", json.dumps({"input": "hi", "stream": flag}).encode(), only_first(script))
        for flag in (False, True)
    )
    *events, last = named_events_of(stream)

    assert test_responses.added_up(events) == last["response"]["output"]
    assert test_responses.without_ids(last["response"]) == test_responses.without_ids(whole.json())


def only_first(script: Sequences) -> Script:
    """These APIs have one choice."""
    return lambda request: (event for event in script(request) if event.index == 0)


@given(sequences(), st.lists(st.text("ab€", min_size=1, max_size=3), max_size=3))
def test_the_text_is_that_of_the_tokens_up_to_the_stop(stage: Stage, script: Sequences, stop: list[str]) -> None:
    """A choice is its decoded tokens, cut before the stop string complete first; later tokens do not count."""
    body = {"prompt": "p", "n": len(script.token_ids), "stop": stop}
    whole, _ = both_ways(stage, "/v1/completions", body, script)
    num_tokens = 0
    for choice, token_ids, finish in zip(whole["choices"], script.token_ids, script.finish, strict=True):
        shown, used, reason = reference(token_ids, finish, stop)
        num_tokens += used

        assert (choice["text"], choice["finish_reason"]) == (shown, reason)
    assert whole["usage"]["completion_tokens"] == num_tokens


def reference(token_ids: list[int], finish: FinishReason, stop: list[str]) -> tuple[str, int, str]:
    """Text, number of tokens and finish reason: the text grows token by token and is searched as a whole each time."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for position, token_id in enumerate(token_ids, start=1):
        text += decoder.decode(bytes([token_id]))
        ends = [(text.find(string) + len(string), -len(string)) for string in stop if string in text]
        if ends:
            end, negative_length = min(ends)
            return text[: end + negative_length], position, "stop"
    return text + decoder.decode(b"", final=True), len(token_ids) + (finish is FinishReason.STOP), finish.value


@given(
    CHAT_BODIES.map(lambda body: ("/v1/chat/completions", body))
    | COMPLETION_BODIES.map(lambda body: ("/v1/completions", body))
)
@settings(max_examples=400)
def test_no_body_is_our_fault(stage: Stage, sent: tuple[str, bytes]) -> None:
    """Whatever a client sends is answered by a body, a stream or a 4xx in the envelope; never by a 422 or a 5xx."""
    path, body = sent
    answer = stage.post(path, body, every_sequence)

    assert answer.status_code in {200, 400, 404}, answer.text
    if answer.status_code != 200:
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


def every_sequence(request: GenerateRequest) -> Iterator[TokenEvent]:
    for index in range(request.n):
        yield step(request, [65], index=index, finish=FinishReason.LENGTH)
