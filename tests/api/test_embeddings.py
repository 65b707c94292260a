"""`/v1/embeddings`: what is asked for reaches the model, what it says comes back, and every mistake is named."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable
from typing import Any

import openai
import pytest

from service.api.app import create_app
from service.embedding import EmbeddingRequest, EmbeddingShape
from service.errors import OverloadedError
from tests.api.fakes import (
    BEGIN,
    MODEL_ID,
    VOCAB_SIZE,
    Json,
    ScriptedBackend,
    client_of,
    complaint,
    make_state,
    post,
    serving,
)

PATH = "/v1/embeddings"
SHAPE = EmbeddingShape(kind="decoder", dimensions=2, pooling="mean", max_tokens=8, vocab_size=VOCAB_SIZE)


class Source:
    """The vector of a text says how many tokens it has."""

    shape = SHAPE

    def __init__(self, error: Exception | None = None) -> None:
        self.requests: list[EmbeddingRequest] = []
        self._error = error

    def embed(self, request: EmbeddingRequest) -> Awaitable[list[array[float]]]:
        if self._error is not None:
            raise self._error
        self.requests.append(request)
        return asyncio.sleep(0, [array("f", [len(ids), 0.1]) for ids in request.inputs])


async def ask(**fields: Any) -> EmbeddingRequest:
    source = Source()
    answer = await post(PATH, fields, embedding=source)
    assert answer.status_code == 200, answer.text
    (request,) = source.requests
    return request


async def test_the_answer() -> None:
    """A vector for each input, in order, and what it cost."""
    answer = await post(PATH, {"input": ["hi", "you"], "model": MODEL_ID}, embedding=Source())
    tenth = array("f", [0.1])[0]

    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [3.0, tenth]},
            {"object": "embedding", "index": 1, "embedding": [4.0, tenth]},
        ],
        "model": MODEL_ID,
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("hi", ((BEGIN, *b"hi"),)),
        (["a", "b"], ((BEGIN, 97), (BEGIN, 98))),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
async def test_the_four_forms_of_input(given: object, inputs: tuple[tuple[int, ...], ...]) -> None:
    """Texts get the model's special tokens, token ids are taken as they are."""
    assert (await ask(input=given)).inputs == inputs


async def test_options() -> None:
    """Pooling is the model's own unless told otherwise; special tokens can be left out."""
    assert (await ask(input="a")).pooling == "mean"
    assert (await ask(input="a", pooling="last")).pooling == "last"
    assert (await ask(input="a", add_special_tokens=False)).inputs == ((97,),)
    assert (await ask(input="a", dimensions=2)).inputs == ((BEGIN, 97),)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
async def test_the_openai_client(options: Any) -> None:
    """It asks for base64 by itself, and gets the same numbers."""
    state = make_state(ScriptedBackend(), embedding=Source())
    async with (
        serving(create_app(state)) as port,
        openai.DefaultAsyncHttpxClient(trust_env=False) as http,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", http_client=http) as client,
    ):
        answer = await client.embeddings.create(model=MODEL_ID, input=["hi"], **options)
    vector: Any = answer.data[0].embedding

    if options.get("encoding_format") == "base64":
        assert vector == "AABAQM3MzD0="  # 3.0 and 0.1, little-endian
    else:
        assert vector == pytest.approx([3.0, 0.1])
    assert answer.usage.prompt_tokens == 3


async def test_the_model_says_what_its_vectors_are() -> None:
    """Those of a decoder are not what it was made for."""
    async with client_of(ScriptedBackend(), embedding=Source()) as client:
        (model,) = (await client.get("/v1/models")).json()["data"]

    assert model["embedding"] == {
        "kind": "decoder",
        "dimensions": 2,
        "pooling": "mean",
        "max_tokens": 8,
        "vocab_size": VOCAB_SIZE,
    }


FAULTS: list[tuple[Json, str, str]] = [
    ({}, "Missing required parameter: 'input'.", "input"),
    ({"input": []}, "Invalid value for 'input': it must not be empty.", "input"),
    ({"input": 3}, "Invalid value for 'input': expected a string, token ids or an array of either.", "input"),
    ({"input": ["a", 3]}, "Invalid type for 'input[1]': expected a string, but got an integer instead.", "input[1]"),
    ({"input": "x" * 8}, "An input must have 1 to 8 tokens, but number 0 has 9.", "input"),
    (
        {"input": ["a", ""], "add_special_tokens": False},
        "An input must have 1 to 8 tokens, but number 1 has 0.",
        "input",
    ),
    ({"input": [1, 258]}, "input names a token id outside the vocabulary: ids are 0 to 257.", "input"),
    (
        {"input": ["x"] * 2049},
        "Invalid value for 'input': it must have at most 2048 elements.",
        "input",
    ),
    (
        {"input": "x", "dimensions": 1},
        "dimensions must be 2 with this model: its vectors cannot be cut.",
        "dimensions",
    ),
    (
        {"input": "x", "pooling": "first"},
        "The first token of this model has seen no other: pool mean or last.",
        "pooling",
    ),
    (
        {"input": "x", "encoding_format": "hex"},
        "Invalid value for 'encoding_format': Input should be 'float' or 'base64'.",
        "encoding_format",
    ),
    (
        {"input": "x", "truncate_prompt_tokens": 8},
        "'truncate_prompt_tokens' is not supported.",
        "truncate_prompt_tokens",
    ),
]


@pytest.mark.parametrize(("fields", "message", "param"), FAULTS)
async def test_faulty_requests(fields: Json, message: str, param: str) -> None:
    """Each is a 400 that names the field."""
    answer = await post(PATH, fields, embedding=Source())

    assert answer.status_code == 400
    assert answer.json() == complaint(message, param)


async def test_without_a_model() -> None:
    """There is nothing to ask."""
    answer = await post(PATH, {"input": "x"})

    assert answer.json() == complaint("No model that gives embeddings is served here.", "model")


async def test_too_many_at_once() -> None:
    """Is a 429 that says when to come back."""
    answer = await post(PATH, {"input": "x"}, embedding=Source(OverloadedError("Busy.", retry_after_s=1.0)))

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
