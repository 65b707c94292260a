"""What can be asked about the fleet: how many replicas there are, and what the autoscaler decided, and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service.api import sse
from service.api.disconnect import unless_disconnected
from service.api.openapi import errors
from service.backend import FleetView
from service.errors import InvalidRequestError

MAX_DECISIONS = 3600
DEFAULT_DECISIONS = 100
FOLLOW_PERIOD_S = 0.5

_PARAMETERS = [
    ("limit", f"most decisions, the latest ones; 1 to {MAX_DECISIONS}, default {DEFAULT_DECISIONS}", "integer"),
    ("since", "only decisions numbered above this", "integer"),
    ("changes", "true: only decisions that asked for more or fewer replicas", "boolean"),
    ("stream", "true: go on with each new decision, as server-sent events", "boolean"),
]


def fleet_routes(view: FleetView) -> APIRouter:
    router = APIRouter(prefix="/fleet", tags=["fleet"], responses=errors(HTTPStatus.SERVICE_UNAVAILABLE))

    @router.get("")
    async def fleet() -> JSONResponse:
        """The replicas, the last decision of the autoscaler with everything it saw, and what the fleet has cost."""
        return JSONResponse(dict(await view.status()))

    parameters = [
        {"name": name, "in": "query", "description": text, "schema": {"type": kind}} for name, text, kind in _PARAMETERS
    ]

    @router.get("/decisions", openapi_extra={"parameters": parameters}, responses=errors(HTTPStatus.BAD_REQUEST))
    async def decisions(request: Request) -> Response:
        """Decisions, oldest first: from how many replicas to how many, why in words, and every number behind it."""
        query = _Query(request.query_params)
        limit = query.integer("limit", DEFAULT_DECISIONS, 1, MAX_DECISIONS)
        since = query.integer("since", 0, 0, 2**53)
        only_changes, is_stream = query.flag("changes"), query.flag("stream")
        query.refuse_unknown({name for name, _, _ in _PARAMETERS})
        found = await view.decisions(since, limit, only_changes=only_changes)
        if is_stream:
            return _UntilDisconnected(_follow(view, found, since, only_changes=only_changes))
        return JSONResponse({"decisions": list(found)})

    return router


class _UntilDisconnected(sse.EventStream):
    """Events without an end: they stop when their reader goes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):
            await unless_disconnected(receive, super().__call__(scope, receive, send))


async def _follow(
    view: FleetView, found: Sequence[Mapping[str, Any]], since: int, *, only_changes: bool
) -> AsyncGenerator[bytes, None]:
    """`found`, then whatever comes, until the reader leaves. A comment now and then shows that the line is up."""
    num_quiet = 0
    while True:
        for decision in found:
            yield sse.event(decision)
            since = decision["number"]
        num_quiet = 0 if found else num_quiet + 1
        if num_quiet % 20 == 1:
            yield b": quiet\n\n"
        await asyncio.sleep(FOLLOW_PERIOD_S)
        found = await view.decisions(since, MAX_DECISIONS, only_changes=only_changes)


class _Query:
    """Query parameters; every mistake is an InvalidRequestError that names its parameter."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self._values.get(name)
        if text is None:
            return default
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise InvalidRequestError(f"{name} must be an integer from {low} to {high}.", param=name)
        return value

    def flag(self, name: str) -> bool:
        text = self._values.get(name, "false").lower()
        if text not in {"true", "false", "1", "0"}:
            raise InvalidRequestError(f"{name} must be true or false.", param=name)
        return text in {"true", "1"}

    def refuse_unknown(self, known: set[str]) -> None:
        for name in self._values:
            if name not in known:
                raise InvalidRequestError(f"There is no query parameter {name[:50]!r} here.", param=name[:50])
