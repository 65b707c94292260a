"""`/tokenize`, `/detokenize`, `/tokenizer_info` and `/v1/chat/completions/render`: what needs the tokenizer alone.

Fields and answers are vLLM's, whose clients look for them here (evaluation harnesses, prefix-aware routers).
"""

from __future__ import annotations

import asyncio
from typing import Annotated, ClassVar, Self

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import Field, model_validator

from service.api import examples
from service.api.body import parse_body, parse_object
from service.api.chat import ChatRequest, prompt_of
from service.api.conversation import Message
from service.api.fields import Int, StrictModel, Unsupported
from service.api.logs import RequestRecord
from service.api.openapi import answers, request_body
from service.api.render import Json
from service.api.state import ApiState
from service.api.tools import MAX_TOOLS, Tool
from service.api.work import WorkResponse
from service.errors import InvalidRequestError


class TokenizeRequest(StrictModel):
    """A text, or a conversation that is put into the chat template."""

    unsupported: ClassVar[Unsupported] = {
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "media_io_kwargs": (),
        "mm_processor_kwargs": (),
    }

    model: str | None = Field(None, description="The model to use; by default the one that is served here.")
    prompt: str | None = Field(None, description="A text; this or messages.")
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    add_special_tokens: bool | None = Field(None, description="Default true for a prompt, false for messages.")
    add_generation_prompt: bool | None = Field(None, description="Begin the assistant's turn. Default true.")
    continue_final_message: bool | None = Field(None, description="Go on with the text of the last message.")
    return_token_strs: bool | None = Field(None, description="Give the text of each token too.")
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError("Send either prompt or messages.", param="prompt")
        for name in ("add_generation_prompt", "continue_final_message", "tools"):
            if self.messages is None and getattr(self, name):
                raise InvalidRequestError(f"{name} is only allowed together with messages.", param=name)
        return self


class DetokenizeRequest(StrictModel):
    """Token ids. Special tokens are spelled out."""

    model: str | None = Field(None, description="The model to use; by default the one that is served here.")
    tokens: Annotated[list[Annotated[Int, Field(ge=0)]], Field(fail_fast=True)]


MODELS = (TokenizeRequest, DetokenizeRequest)


def tokenize_routes(state: ApiState) -> APIRouter:
    router = APIRouter(tags=["tokenizer"])
    head = {"model": state.model_id}

    @router.post(
        "/tokenize",
        openapi_extra=request_body(TokenizeRequest, {**head, "prompt": "The cat sat"}),
        responses=answers({"count": 3, "max_model_len": 8192, "tokens": [504, 2644, 6067], "token_strs": None}),
    )
    async def tokenize() -> Response:
        """The tokens of a text or a conversation."""
        return WorkResponse(state, _tokenize)

    @router.post(
        "/detokenize",
        openapi_extra=request_body(DetokenizeRequest, {**head, "tokens": [504, 2644, 6067]}),
        responses=answers({"prompt": "The cat sat"}),
    )
    async def detokenize() -> Response:
        """The text of tokens."""
        return WorkResponse(state, _detokenize)

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> JSONResponse:
        """What else a client needs to tokenise as this server does."""
        return JSONResponse(_info(state))

    @router.post(
        "/v1/chat/completions/render",
        openapi_extra=request_body(ChatRequest, {**head, **examples.CHAT}),
        responses=answers({"model": "a-model", "prompt": "<|user|>What is attention?", "token_ids": [1, 1780]}),
    )
    async def render_chat() -> Response:
        """The prompt that a chat completion with this body would have, and its tokens."""
        return WorkResponse(state, _render)

    return router


async def _tokenize(state: ApiState, body: bytes, _: RequestRecord) -> Json:
    return await asyncio.to_thread(_tokenized, state, body)


async def _detokenize(state: ApiState, body: bytes, _: RequestRecord) -> Json:
    return await asyncio.to_thread(_detokenized, state, body)


async def _render(state: ApiState, body: bytes, _: RequestRecord) -> Json:
    return await asyncio.to_thread(_rendered, state, body)


def _tokenized(state: ApiState, body: bytes) -> Json:
    fields = parse_body(TokenizeRequest, body)
    if fields.prompt is None:
        names = {"model", "messages", "add_special_tokens", "add_generation_prompt", "continue_final_message", "tools"}
        same = {name: value for name in names if (value := getattr(fields, name)) is not None}
        token_ids = prompt_of(state, parse_object(ChatRequest, same))
    else:
        state.adapter_of(fields.model)
        with_special = fields.add_special_tokens is not False
        token_ids = state.tokenizer.encode(fields.prompt, add_special_tokens=with_special)
    strings = [state.tokenizer.token_text(token_id) for token_id in token_ids] if fields.return_token_strs else None
    return {
        "count": len(token_ids),
        "max_model_len": state.backend.max_model_len,
        "tokens": token_ids,
        "token_strs": strings,
    }


def _detokenized(state: ApiState, body: bytes) -> Json:
    fields = parse_body(DetokenizeRequest, body)
    state.adapter_of(fields.model)
    return {"prompt": state.tokenizer.decode(fields.tokens, skip_special_tokens=False)}


def _rendered(state: ApiState, body: bytes) -> Json:
    token_ids = prompt_of(state, parse_body(ChatRequest, body))
    prompt = state.tokenizer.decode(token_ids, skip_special_tokens=False)
    return {"model": state.model_id, "prompt": prompt, "token_ids": token_ids}


def _info(state: ApiState) -> Json:
    tokenizer = state.tokenizer
    begin, ends = tokenizer.bos_token_id, sorted(tokenizer.eos_token_ids)
    template = tokenizer.chat_template
    return {
        "bos_token": None if begin is None else tokenizer.token_text(begin),
        "eos_token": tokenizer.token_text(ends[0]) if ends else None,
        "chat_template": None if template is None else template.source,
        "max_model_len": state.backend.max_model_len,
        "vocab_size": tokenizer.vocab_size,
    }
