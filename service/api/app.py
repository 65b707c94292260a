"""The HTTP application: a plain ASGI app that any server can run, and that holds nothing but its `ApiState`."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from service.api import chat, completions
from service.api.errors import answer_error
from service.api.fleet import fleet_routes
from service.api.middleware import REQUEST_ID_HEADER, RequestScope
from service.api.openapi import MODEL_ID_PARAMETER, answers, errors, openapi_of, request_body
from service.api.respond import GenerationResponse
from service.api.state import ApiState
from service.backend import Health
from service.errors import HeadcountError, UnavailableError

_DESCRIPTION = (
    "Chat and text completions, compatible with the OpenAI API. Every failed answer has the same error envelope."
)
_UNAVAILABLE = errors(HTTPStatus.SERVICE_UNAVAILABLE)


def create_app(state: ApiState) -> FastAPI:
    """The application that serves `state`: a pure function of it.

    No route lets FastAPI parse anything: what it would say of a mistake (422, `detail`) is not what clients understand.
    """
    app = FastAPIOffline(
        redoc_url=None,  # one page of documentation is enough
        title="Headcount",
        version=state.version,
        description=_DESCRIPTION,
        redirect_slashes=False,  # another URL is another URL: 404, not a redirect that loses the body
    )
    for kind in (HeadcountError, HTTPException):
        app.add_exception_handler(kind, answer_error)
    app.include_router(_generation_routes(state))
    app.include_router(_model_routes(state))
    app.include_router(_operation_routes(state))
    if state.fleet is not None:
        app.include_router(fleet_routes(state.fleet))
    app.openapi = openapi_of(app)  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    if state.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=state.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER],
        )
    app.add_middleware(RequestScope, state=state)  # added last, so that it is the outermost
    return app


def _generation_routes(state: ApiState) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["generation"])
    model = state.model_id

    @router.post(
        "/chat/completions",
        openapi_extra=request_body(chat.ChatRequest, {"model": model, **chat.EXAMPLE}),
        responses=answers(chat.EXAMPLE_ANSWER, stream=True),
    )
    async def create_chat_completion() -> Response:
        """The assistant's next message in a conversation."""
        return GenerationResponse(state, chat.prepare)

    @router.post(
        "/completions",
        openapi_extra=request_body(completions.CompletionRequest, {"model": model, **completions.EXAMPLE}),
        responses=answers(completions.EXAMPLE_ANSWER, stream=True),
    )
    async def create_completion() -> Response:
        """The text that continues one or several prompts."""
        return GenerationResponse(state, completions.prepare)

    return router


def _model_routes(state: ApiState) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["models"])
    model = {"id": state.model_id, "object": "model", "created": state.created_at, "owned_by": "headcount"}

    @router.get("")
    async def list_models() -> JSONResponse:
        """The models that are served here."""
        return JSONResponse({"object": "list", "data": [model]})

    @router.get(
        "/{model_id:path}",
        openapi_extra={"parameters": [MODEL_ID_PARAMETER]},
        responses=errors(HTTPStatus.NOT_FOUND),
    )
    async def retrieve_model(request: Request) -> JSONResponse:
        """One model; its id may contain slashes."""
        state.check_model(request.path_params["model_id"])
        return JSONResponse(model)

    return router


def _operation_routes(state: ApiState) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/health/live", responses=_UNAVAILABLE)
    async def live() -> JSONResponse:
        """503 when the engine's heartbeat has stopped: restart it. A busy engine is alive."""
        health = state.backend.health()
        return _health_answer(health, healthy=health.alive)

    @router.get("/health", responses=_UNAVAILABLE)
    @router.get("/health/ready", responses=_UNAVAILABLE)
    async def ready() -> JSONResponse:
        """503 while new requests should go elsewhere: loading, draining or dead."""
        health = state.backend.health()
        return _health_answer(health, healthy=health.alive and health.ready)

    @router.get("/version")
    async def version() -> JSONResponse:
        """The version of this server."""
        return JSONResponse({"version": state.version})

    @router.get("/metrics")
    async def metrics() -> Response:
        """Metrics in Prometheus' text format."""
        body, content_type = await asyncio.to_thread(state.render_metrics)
        return Response(body, headers={"content-type": content_type})

    return router


def _health_answer(health: Health, *, healthy: bool) -> JSONResponse:
    if not healthy:
        raise UnavailableError(f"The server is not {'ready' if health.alive else 'alive'}: {health.reason}")
    return JSONResponse(
        {
            "status": "ok",
            "reason": health.reason,
            "num_waiting": health.num_waiting,
            "num_running": health.num_running,
        }
    )
