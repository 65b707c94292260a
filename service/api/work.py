"""Answers that are one JSON document, made from the body of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.api.disconnect import unless_disconnected
from service.api.logs import CLIENT_CLOSED_REQUEST, RequestRecord, record_of
from service.api.state import ApiState

Work = Callable[[ApiState, bytes, RequestRecord], Coroutine[Any, Any, object]]
"""Makes the answer to the body of a request. What is slow goes into a thread."""


class WorkResponse(Response):
    """One task owns all of it, so that nothing is computed for a client that has gone."""

    def __init__(self, state: ApiState, work: Work) -> None:
        super().__init__()
        self._state = state
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = record_of(scope)
        try:
            async with self._state.intake.body(Request(scope, receive)) as body:
                response = await unless_disconnected(receive, self._answer(body, record))
            record.model = self._state.model_id
        except ClientDisconnect:
            record.client_disconnected = True
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        await response(scope, receive, send)

    async def _answer(self, body: bytes, record: RequestRecord) -> Response:
        answer = await self._work(self._state, body, record)
        return await asyncio.to_thread(JSONResponse, answer)  # it may have megabytes of numbers
