"""`/v1/attention`: what is asked for reaches the model, what it says comes back, and every mistake is named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from service.api.app import create_app
from service.attention import (
    MAX_TOKENS,
    AttentionMap,
    AttentionRequest,
    AttentionShape,
    HeadSummary,
    HeadWeights,
    Link,
)
from service.errors import InvalidRequestError, OverloadedError
from service.types import FinishReason
from tests.api.fakes import (
    BEGIN,
    MESSAGES,
    MODEL_ID,
    VOCAB_SIZE,
    ScriptedBackend,
    complaint,
    make_state,
    post,
    say,
    serving,
)

PATH = "/v1/attention"
SHAPE = AttentionShape(num_layers=3, num_heads=2, num_kv_heads=1, sliding_window=None)
SUMMARY = HeadSummary(entropy=1.5, distance=2.0, previous=0.25, first=0.5, induction=None)


class Source:
    """Says the same of every text, and remembers what it was asked."""

    shape = SHAPE

    def __init__(self, error: Exception | None = None) -> None:
        self.requests: list[AttentionRequest] = []
        self._error = error

    def look(self, request: AttentionRequest) -> Awaitable[AttentionMap]:
        if self._error is not None:
            raise self._error
        self.requests.append(request)
        return asyncio.sleep(
            0,
            AttentionMap(
                summaries=[[SUMMARY] * SHAPE.num_heads] * SHAPE.num_layers,
                weights=[HeadWeights(2, 1, [[1.0], [0.75, 0.25]])],
                links=[Link(2, 1, 0, 0.75)],
                row=[[[0.75, 0.25]] * SHAPE.num_heads] * SHAPE.num_layers,
            ),
        )


async def ask(body: dict[str, Any], backend: ScriptedBackend | None = None) -> AttentionRequest:
    source = Source()
    answer = await post(PATH, body, backend, attention=source)
    assert answer.status_code == 200, answer.text
    (request,) = source.requests
    return request


async def test_the_answer_says_it_all() -> None:
    """Tokens by name, the model's shape, and everything that was found."""
    answer = await post(PATH, {"prompt": "A", "layers": [2], "heads": [1], "position": 1}, attention=Source())
    assert answer.json() == {
        "object": "attention",
        "model": MODEL_ID,
        "num_layers": 3,
        "num_heads": 2,
        "num_kv_heads": 1,
        "sliding_window": None,
        "num_prompt_tokens": 2,
        "tokens": [{"id": BEGIN, "text": "<|begin|>"}, {"id": 65, "text": "A"}],
        "summaries": [[SUMMARY._asdict()] * 2] * 3,
        "weights": [{"layer": 2, "head": 1, "rows": [[1.0], [0.75, 0.25]]}],
        "links": [{"layer": 2, "head": 1, "position": 0, "weight": 0.75}],
        "row": [[[0.75, 0.25]] * 2] * 3,
    }


@pytest.mark.parametrize(
    ("body", "token_ids"),
    [
        ({"prompt": "hi"}, (BEGIN, *b"hi")),
        ({"prompt": "hi", "add_special_tokens": False}, tuple(b"hi")),
        ({"prompt": [7, 8]}, (7, 8)),
        ({"messages": MESSAGES}, (*b"user:hi", 256, *b"assistant:")),
        ({"messages": MESSAGES, "add_special_tokens": True}, (BEGIN, *b"user:hi", 256, *b"assistant:")),
    ],
)
async def test_a_text_or_a_conversation_is_looked_at(body: dict[str, Any], token_ids: tuple[int, ...]) -> None:
    """As its completion or its chat would see it."""
    assert (await ask(body)).token_ids == token_ids


async def test_the_greedy_continuation_is_looked_at_too() -> None:
    """It is generated as any other request is."""
    backend = ScriptedBackend(say("yes", finish=FinishReason.LENGTH))
    request = await ask({"prompt": "no", "add_special_tokens": False, "max_tokens": 3}, backend)
    assert request.token_ids == tuple(b"noyes")
    (generated,) = backend.requests
    assert (generated.sampling.max_tokens, generated.sampling.temperature) == (3, 0.0)


@pytest.mark.parametrize(
    ("given", "layers", "heads"),
    [
        ({}, (), ()),
        ({"layers": []}, (), ()),
        ({"layers": [1]}, (1,), (0, 1)),
        ({"layers": "all", "heads": [1, 1]}, (0, 1, 2), (1,)),
        ({"layers": [2, 0], "heads": "all"}, (2, 0), (0, 1)),
    ],
)
async def test_heads_are_chosen(given: dict[str, Any], layers: tuple[int, ...], heads: tuple[int, ...]) -> None:
    """None unless they are asked for."""
    request = await ask({"prompt": "x", **given})
    assert (request.layers, request.heads) == (layers, heads)


@pytest.mark.parametrize(
    ("changes", "message", "param"),
    [
        ({"prompt": None}, "Send either prompt or messages.", "prompt"),
        ({"messages": MESSAGES}, "Send either prompt or messages.", "prompt"),
        ({"prompt": 3}, "Invalid value for 'prompt': expected a string or token ids.", "prompt"),
        ({"prompt": [VOCAB_SIZE]}, "prompt names a token id outside the vocabulary.", "prompt"),
        (
            {"prompt": []},
            f"Attention is shown for 1 to {MAX_TOKENS} tokens, but these are 0 in the prompt and 0 in the"
            " continuation.",
            "prompt",
        ),
        (
            {"prompt": "x" * 255, "max_tokens": 1},
            f"Attention is shown for 1 to {MAX_TOKENS} tokens, but these are 256 in the prompt and 1 in the"
            " continuation.",
            "prompt",
        ),
        ({"max_tokens": -1}, "max_tokens must be from 0 to 255.", "max_tokens"),
        ({"layers": [3]}, "layers must be numbers from 0 to 2 in this model.", "layers"),
        ({"layers": "some"}, "Invalid value for 'layers': Input should be 'all'.", "layers"),
        ({"layers": [0], "heads": [-1]}, "heads must be numbers from 0 to 1 in this model.", "heads"),
        ({"heads": [0]}, "heads is only allowed together with layers.", "heads"),
        ({"all_heads": True}, "all_heads is only allowed together with position.", "all_heads"),
        ({"num_links": 5}, "num_links is only allowed together with position.", "num_links"),
        ({"position": 9}, "position must be from 0 to 1 here.", "position"),
        ({"position": 0, "num_links": 101}, "num_links must be from 0 to 100.", "num_links"),
        ({"laiers": [0]}, "Unrecognized request argument supplied: laiers (did you mean layers?)", "laiers"),
        ({"stream": True}, "'stream' is not supported.", "stream"),
    ],
)
async def test_mistakes_are_named(changes: dict[str, Any], message: str, param: str) -> None:
    """Before anything is computed."""
    source, backend = Source(), ScriptedBackend()
    answer = await post(PATH, {"prompt": "x", **changes}, backend, attention=source)
    assert (answer.status_code, answer.json()) == (400, complaint(message, param))
    assert (source.requests, backend.requests) == ([], [])


def test_the_answer_is_bounded() -> None:
    """All weights of a large model are more than one answer holds."""
    shape = AttentionShape(num_layers=32, num_heads=32, num_kv_heads=8, sliding_window=None)
    with pytest.raises(InvalidRequestError, match="These are 33685504 weights; at most 262144") as caught:
        AttentionRequest(shape=shape, token_ids=(1,) * 256, layers=(*range(32),), heads=(*range(32),))
    assert caught.value.param == "layers"


async def test_without_a_model_there_is_nothing_to_see() -> None:
    """A synthetic replica says so."""
    answer = await post(PATH, {"prompt": "x"})
    assert (answer.status_code, answer.json()) == (400, complaint("No model with attention is served here.", "model"))


async def test_too_many_at_once_are_sent_away() -> None:
    """With a time to come back."""
    source = Source(OverloadedError("Busy.", retry_after_s=1.0))
    answer = await post(PATH, {"prompt": "x"}, attention=source)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


class Endless:
    """Never answers."""

    shape = SHAPE

    def __init__(self) -> None:
        self.has_begun, self.has_ended = asyncio.Event(), asyncio.Event()

    async def look(self, request: AttentionRequest) -> AttentionMap:
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.has_ended.set()
        raise AssertionError


async def test_a_client_that_goes_ends_the_work() -> None:
    """Nothing is computed for nobody."""
    source, content = Endless(), b'{"prompt": "x"}'
    async with serving(create_app(make_state(ScriptedBackend(), attention=source))) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/attention HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        await source.has_begun.wait()
        writer.transport.abort()
        await source.has_ended.wait()
