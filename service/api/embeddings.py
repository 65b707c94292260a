"""`POST /v1/embeddings`: vectors of texts."""

from __future__ import annotations

import asyncio
import base64
import sys
from array import array
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Response
from pydantic import Discriminator, Field, Tag

from service.api import examples
from service.api.body import parse_body
from service.api.completions import TokenIds, kind_of_prompt
from service.api.fields import Int, StrictModel, Unsupported
from service.api.logs import RequestRecord
from service.api.openapi import answers, request_body
from service.api.render import Json
from service.api.state import ApiState
from service.api.work import WorkResponse
from service.embedding import MAX_INPUTS, EmbeddingRequest, EmbeddingSource, Pooling
from service.errors import InvalidRequestError

Input = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("<prompts>")],
    Discriminator(
        kind_of_prompt,
        custom_error_type="input",
        custom_error_message="expected a string, token ids or an array of either",
    ),
]


class EmbeddingFields(StrictModel):
    """Vectors of one or several texts, each of length 1, so that their cosine is their inner product."""

    unsupported: ClassVar[Unsupported] = {"truncate_prompt_tokens": (-1,), "priority": (0,)}

    model: str | None = Field(None, description="The model to use; by default the one that is served here.")
    input: Input
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: the bytes of little-endian 32-bit floats. Default float."
    )
    dimensions: Int | None = Field(None, description="The vectors' own length, or left out: nothing is cut off.")
    pooling: Pooling | None = Field(
        None, description="mean, last or first: over which tokens' states. Default: as the model was made."
    )
    add_special_tokens: bool | None = Field(None, description="Default true; token ids are taken as they are.")
    user: str | None = Field(None, description="Accepted and not used.")


def embedding_routes(state: ApiState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["embeddings"])

    @router.post(
        "/embeddings",
        openapi_extra=request_body(EmbeddingFields, {"model": state.model_id, **examples.EMBEDDING}),
        responses=answers(examples.EMBEDDING_ANSWER),
    )
    async def create_embeddings() -> Response:
        """Vectors of texts, by the model that is served: what an encoder is for. A model that generates text was not
        trained to compare texts: its vectors are its last hidden states. `/v1/models` says which it is."""
        return WorkResponse(state, _embed)

    return router


async def _embed(state: ApiState, body: bytes, record: RequestRecord) -> Json:
    source, fields, request = await asyncio.to_thread(_prepare, state, body)
    record.reserve(request.num_tokens)
    vectors = await source.embed(request)
    return await asyncio.to_thread(_rendered, state, fields, request, vectors)


def _prepare(state: ApiState, body: bytes) -> tuple[EmbeddingSource, EmbeddingFields, EmbeddingRequest]:
    fields = parse_body(EmbeddingFields, body)
    state.check_has_no_adapter(fields.model)
    source = state.embedding
    if source is None:
        raise InvalidRequestError("No model that gives embeddings is served here.", param="model")
    if fields.dimensions not in (None, source.shape.dimensions):
        raise InvalidRequestError(
            f"dimensions must be {source.shape.dimensions} with this model: its vectors cannot be cut.",
            param="dimensions",
        )
    request = EmbeddingRequest(
        shape=source.shape,
        inputs=tuple(tuple(token_ids) for token_ids in _token_lists(state, fields)),
        pooling=fields.pooling or source.shape.pooling,
    )
    return source, fields, request


def _token_lists(state: ApiState, fields: EmbeddingFields) -> list[list[int]]:
    given = fields.input
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    with_special = fields.add_special_tokens is not False
    return [
        state.tokenizer.encode(each, add_special_tokens=with_special) if isinstance(each, str) else each
        for each in inputs
    ]


def _rendered(state: ApiState, fields: EmbeddingFields, request: EmbeddingRequest, vectors: list[array[float]]) -> Json:
    show = _base64 if fields.encoding_format == "base64" else array.tolist
    data = [{"object": "embedding", "index": i, "embedding": show(vector)} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": request.num_tokens, "total_tokens": request.num_tokens}
    return {"object": "list", "data": data, "model": state.model_id, "usage": usage}


def _base64(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
