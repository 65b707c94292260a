"""What is asked about the server rather than of it: its model, its health, its version, its metrics."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from service.api.openapi import MODEL_ID_PARAMETER, errors
from service.api.state import ApiState
from service.errors import UnavailableError
from service.health import Health

_UNAVAILABLE = errors(HTTPStatus.SERVICE_UNAVAILABLE)


def adapter_card(state: ApiState, name: str) -> dict[str, object]:
    """An adapter as one of the models that are served."""
    return {**_card(state, name), "parent": state.model_id}


def _card(state: ApiState, name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": state.created_at, "owned_by": "headcount"}


def model_routes(state: ApiState) -> APIRouter:
    router = APIRouter(prefix="/v1/models", tags=["models"])
    model = _card(state, state.model_id)
    if state.embedding is not None:
        model["embedding"] = asdict(state.embedding.shape)

    @router.get("")
    async def list_models() -> JSONResponse:
        """The models that are served here: the model itself, and its adapters."""
        names = () if state.adapters is None else await asyncio.to_thread(state.adapters.names)
        return JSONResponse({"object": "list", "data": [model, *(adapter_card(state, name) for name in names)]})

    @router.get(
        "/{model_id:path}",
        openapi_extra={"parameters": [MODEL_ID_PARAMETER]},
        responses=errors(HTTPStatus.NOT_FOUND),
    )
    async def retrieve_model(request: Request) -> JSONResponse:
        """One model; its id may contain slashes."""
        adapter = await asyncio.to_thread(state.adapter_of, request.path_params["model_id"])
        return JSONResponse(model if adapter is None else adapter_card(state, adapter.name))

    return router


def operation_routes(state: ApiState) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/health/live", responses=_UNAVAILABLE)
    async def live() -> JSONResponse:
        """503 when the engine's heartbeat has stopped: restart it. A busy engine is alive."""
        health = state.backend.health()
        return _health_answer(health, healthy=health.alive)

    @router.get("/health", responses=_UNAVAILABLE)
    @router.get("/health/ready", responses=_UNAVAILABLE)
    async def ready() -> JSONResponse:
        """503 while new requests should go elsewhere: loading, draining or dead. A server that is overloaded is ready:
        without it the others would have to serve more, and what it cannot serve in time it says at once."""
        health = state.backend.health()
        return _health_answer(health, healthy=health.alive and health.ready)

    @router.get("/version")
    async def version() -> JSONResponse:
        """The version of this server."""
        return JSONResponse({"version": state.version})

    @router.get("/metrics", response_class=PlainTextResponse)
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
            "state": health.state.value,
            "reason": health.reason,
            "num_waiting": health.num_waiting,
            "num_running": health.num_running,
            "wait_s": round(health.wait_s, 3),
        }
    )
