"""The routes of generation: OpenAI's chat completions, completions and responses, and Anthropic's messages."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from service.api import chat, completions, examples, messages, responses
from service.api.logs import RequestRecord
from service.api.openapi import answers, anthropic_answers, request_body
from service.api.respond import GenerationResponse
from service.api.state import ApiState
from service.api.work import WorkResponse

MODELS = (
    chat.ChatRequest,
    completions.CompletionRequest,
    responses.ResponsesRequest,
    messages.MessagesRequest,
    messages.CountRequest,
)


def generation_routes(state: ApiState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["generation"])
    model = state.model_id

    @router.post(
        "/chat/completions",
        openapi_extra=request_body(chat.ChatRequest, {"model": model, **examples.CHAT}),
        responses=answers(examples.CHAT_ANSWER, stream=True),
    )
    async def create_chat_completion() -> Response:
        """The assistant's next message in a conversation."""
        return GenerationResponse(state, chat.prepare)

    @router.post(
        "/completions",
        openapi_extra=request_body(completions.CompletionRequest, {"model": model, **examples.COMPLETION}),
        responses=answers(examples.COMPLETION_ANSWER, stream=True),
    )
    async def create_completion() -> Response:
        """The text that continues one or several prompts."""
        return GenerationResponse(state, completions.prepare)

    return router


def dialect_routes(state: ApiState) -> APIRouter:
    """The same generation behind other APIs."""
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
