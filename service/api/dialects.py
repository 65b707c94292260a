"""The routes of other APIs than completions: the same generation behind OpenAI's responses and Anthropic's messages."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from service.api import examples, messages, responses
from service.api.logs import RequestRecord
from service.api.openapi import answers, anthropic_answers, request_body
from service.api.respond import GenerationResponse
from service.api.state import ApiState
from service.api.work import WorkResponse

MODELS = (responses.ResponsesRequest, messages.MessagesRequest, messages.CountRequest)


def dialect_routes(state: ApiState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["generation"])
    model = state.model_id

    @router.post(
        "/responses",
        openapi_extra=request_body(responses.ResponsesRequest, {"model": model, **examples.RESPONSE}),
        responses=answers(examples.RESPONSE_ANSWER, stream=True),
    )
    async def create_response() -> Response:
        """The assistant's answer to some input, as OpenAI's Responses API has it. Nothing is stored."""
        return GenerationResponse(state, responses.prepare)

    @router.post(
        "/messages",
        openapi_extra=request_body(messages.MessagesRequest, {"model": model, **examples.MESSAGE}),
        responses=anthropic_answers(examples.MESSAGE_ANSWER, stream=True),
    )
    async def create_message() -> Response:
        """The assistant's next message in a conversation, as Anthropic's API has it."""
        return GenerationResponse(state, messages.prepare)

    @router.post(
        "/messages/count_tokens",
        openapi_extra=request_body(messages.CountRequest, {"model": model, "messages": examples.MESSAGE["messages"]}),
        responses=anthropic_answers({"input_tokens": 12}),
    )
    async def count_message_tokens() -> Response:
        """How many tokens a conversation has, without an answer."""
        return WorkResponse(state, _count_tokens)

    return router


async def _count_tokens(state: ApiState, body: bytes, _: RequestRecord) -> object:
    return {"input_tokens": await asyncio.to_thread(messages.count_tokens, state, body)}
