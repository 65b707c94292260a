"""`POST /v1/attention`: how the heads of the model look at a text, and at what the model says next."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, ClassVar, Literal, Self

from fastapi import APIRouter, Response
from pydantic import Discriminator, Field, Tag, model_validator

from service.api.body import parse_body
from service.api.conversation import Message
from service.api.failure import raise_failure
from service.api.fields import Int, StrictModel, Unsupported, kind_of_text
from service.api.logs import RequestRecord
from service.api.openapi import answers, request_body
from service.api.render import Json
from service.api.state import ApiState
from service.api.work import WorkResponse
from service.attention import MAX_LINKS, MAX_TOKENS, MAX_WEIGHTS, AttentionMap, AttentionRequest, AttentionSource
from service.errors import InvalidRequestError
from service.types import GenerateRequest, SamplingParams

EXAMPLE: dict[str, object] = {
    "prompt": "The cat sat",
    "position": 2,
    "num_links": 1,
    "layers": [0],
    "heads": [0],
}
EXAMPLE_ANSWER: dict[str, object] = {
    "object": "attention",
    "model": "a-model",
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "sliding_window": None,
    "num_prompt_tokens": 3,
    "tokens": [{"id": 504, "text": "The"}, {"id": 2644, "text": " cat"}, {"id": 6067, "text": " sat"}],
    "summaries": [[{"entropy": 0.55, "distance": 0.6, "previous": 0.8, "first": 0.55, "induction": None}]],
    "weights": [{"layer": 0, "head": 0, "rows": [[1.0], [0.9, 0.1], [0.2, 0.7, 0.1]]}],
    "links": [{"layer": 0, "head": 0, "position": 1, "weight": 0.7}],
    "row": [],
}

Positions = Annotated[list[Int], Field(fail_fast=True)]
Numbers = Annotated[
    Annotated[Literal["all"], Tag("<text>")] | Annotated[Positions, Tag("<list>")],
    Discriminator(
        kind_of_text,
        custom_error_type="numbers",
        custom_error_message="expected an array of integers or 'all'",
    ),
]
Text = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Positions, Tag("<list>")],
    Discriminator(
        kind_of_text,
        custom_error_type="prompt",
        custom_error_message="expected a string or token ids",
    ),
]


class AttentionFields(StrictModel):
    """What to look at. Every answer has the summaries of all heads; the rest is there when it is asked for."""

    unsupported: ClassVar[Unsupported] = {"stream": (False,)}

    model: str | None = Field(None, description="The model to use; by default the one that is served here.")
    prompt: Text | None = Field(None, description="A text or its token ids; this or messages.")
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="A conversation, put into the chat template; this or prompt."
    )
    add_special_tokens: bool | None = Field(None, description="Default true for a prompt, false for messages.")
    max_tokens: Int | None = Field(
        None, description=f"So many tokens of the greedy continuation too. Default 0; with the prompt {MAX_TOKENS}."
    )
    layers: Numbers | None = Field(None, description="Layers, from 0, whose weights to give; 'all' for every one.")
    heads: Numbers | None = Field(None, description="Heads, from 0, of these layers. Default 'all'.")
    position: Int | None = Field(None, description="The token, from 0, whose links to earlier tokens to give.")
    num_links: Int | None = Field(
        None, description=f"So many, strongest first, the first token left out: 0-{MAX_LINKS}, default 10."
    )
    all_heads: bool | None = Field(
        None, description=f"Give the weights of that token in every head. At most {MAX_WEIGHTS} weights in an answer."
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("Send either prompt or messages.", param="prompt")
        if self.max_tokens is not None and not 0 <= self.max_tokens < MAX_TOKENS:
            raise InvalidRequestError(f"max_tokens must be from 0 to {MAX_TOKENS - 1}.", param="max_tokens")
        for name, value, needed in (
            ("heads", self.heads, "layers"),
            ("num_links", self.num_links, "position"),
            ("all_heads", self.all_heads, "position"),
        ):
            if value and getattr(self, needed) is None:
                raise InvalidRequestError(f"{name} is only allowed together with {needed}.", param=name)
        return self


def attention_routes(state: ApiState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["attention"])

    @router.post(
        "/attention",
        openapi_extra=request_body(AttentionFields, EXAMPLE),
        responses=answers(EXAMPLE_ANSWER),
    )
    async def look_at_attention() -> Response:
        """The attention weights of a text in the model that is served, exact, with a summary of every head."""
        return WorkResponse(state, _look)

    return router


async def _look(state: ApiState, body: bytes, record: RequestRecord) -> Json:
    source, fields, prompt = await asyncio.to_thread(_prepare, state, body)
    num_new = fields.max_tokens or 0
    record.reserve(len(prompt) + num_new)
    token_ids = (*prompt, *await _continuation(state, prompt, num_new, record.started_at)) if num_new else prompt
    found = await source.look(_request(source, fields, token_ids))
    return await asyncio.to_thread(_rendered, state, source, found, token_ids, len(prompt))


def _prepare(state: ApiState, body: bytes) -> tuple[AttentionSource, AttentionFields, tuple[int, ...]]:
    """Parse, render the template, tokenise; all that can be refused without the engine is refused here."""
    fields = parse_body(AttentionFields, body)
    state.check_has_no_adapter(fields.model)
    if state.attention is None:
        raise InvalidRequestError("No model with attention is served here.", param="model")
    prompt = tuple(_token_ids(state, fields))
    param = "prompt" if fields.messages is None else "messages"
    if any(not 0 <= token_id < state.backend.vocab_size for token_id in prompt):
        raise InvalidRequestError("prompt names a token id outside the vocabulary.", param=param)
    room = min(MAX_TOKENS, state.backend.max_model_len)
    if not 1 <= len(prompt) <= room - (fields.max_tokens or 0):
        raise InvalidRequestError(
            f"Attention is shown for 1 to {room} tokens, but these are {len(prompt)} in the {param} and"
            f" {fields.max_tokens or 0} in the continuation.",
            param=param,
        )
    _request(state.attention, fields, (*prompt, *[0] * (fields.max_tokens or 0)))
    return state.attention, fields, prompt


def _token_ids(state: ApiState, fields: AttentionFields) -> list[int]:
    if isinstance(fields.prompt, list):
        return fields.prompt
    if fields.prompt is not None:
        return state.tokenizer.encode(fields.prompt, add_special_tokens=fields.add_special_tokens is not False)
    template = state.tokenizer.chat_template
    if template is None:
        raise InvalidRequestError("This model has no chat template: send a prompt.", param="messages")
    text = template.render([message.for_template() for message in fields.messages or ()])
    return state.tokenizer.encode(text, add_special_tokens=bool(fields.add_special_tokens))


def _request(source: AttentionSource, fields: AttentionFields, token_ids: tuple[int, ...]) -> AttentionRequest:
    shape = source.shape
    layers = _numbers(fields.layers, shape.num_layers)
    return AttentionRequest(
        shape=shape,
        token_ids=token_ids,
        layers=layers,
        heads=_numbers("all" if fields.heads is None else fields.heads, shape.num_heads) if layers else (),
        position=fields.position,
        num_links=10 if fields.num_links is None else fields.num_links,
        all_heads=bool(fields.all_heads),
    )


def _numbers(given: str | list[int] | None, end: int) -> tuple[int, ...]:
    return tuple(range(end)) if isinstance(given, str) else tuple(dict.fromkeys(given or ()))


async def _continuation(state: ApiState, prompt: tuple[int, ...], num_new: int, arrival_at: float) -> list[int]:
    """What the model says next, as any other request; the token that ends it too."""
    request = GenerateRequest(
        request_id=f"attn-{uuid.uuid4().hex}",
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=num_new, temperature=0.0),
        arrival_at=arrival_at,
    )
    token_ids: list[int] = []
    async with aclosing(state.backend.generate(request)) as stream:
        async for event in stream:
            raise_failure(event, state.backend)
            token_ids += event.token_ids
    return token_ids


def _rendered(
    state: ApiState, source: AttentionSource, found: AttentionMap, token_ids: tuple[int, ...], num_prompt_tokens: int
) -> Json:
    return {
        "object": "attention",
        "model": state.model_id,
        **asdict(source.shape),
        "num_prompt_tokens": num_prompt_tokens,
        "tokens": [{"id": token_id, "text": state.tokenizer.token_text(token_id)} for token_id in token_ids],
        "summaries": [[summary._asdict() for summary in layer] for layer in found.summaries],
        "weights": [each._asdict() for each in found.weights],
        "links": [link._asdict() for link in found.links],
        "row": found.row,
    }
