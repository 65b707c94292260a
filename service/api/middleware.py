"""The outermost layer: every request gets an id and ends in exactly one log line, whatever happens inside."""

from __future__ import annotations

import logging
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import fail, is_anthropic
from service.api.logs import CLIENT_CLOSED_REQUEST, RequestRecord, attach_record, log_request
from service.api.measures import measure
from service.api.state import ApiState

REQUEST_ID_HEADER = "x-request-id"
ANTHROPIC_REQUEST_ID_HEADER = "request-id"
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Asked every few seconds, for ever.
_PROBES = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/fleet"})


class RequestScope:
    """Attaches a RequestRecord, answers with its id, turns an unexpected exception into a 500; logs, measures, traces.

    The id is the client's `X-Request-Id` where that is sane, else a fresh one. It is for people: clients may repeat it.
    """

    def __init__(self, app: ASGIApp, state: ApiState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope), scope["method"], self._state.clock())
        attach_record(scope, record)

        async def counted_receive() -> Message:
            message = await receive()
            record.request_bytes += len(message.get("body", b""))
            return message

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = record.request_id
                if is_anthropic(scope):
                    headers[ANTHROPIC_REQUEST_ID_HEADER] = record.request_id
            record.response_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, counted_receive, send_with_id, record)
        finally:
            self._finish(scope, record)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            failure = fail(record, error)
            if record.status != CLIENT_CLOSED_REQUEST:
                raise  # an answer has begun: only cutting the connection tells the client that it is not whole
            await failure.response(scope)(scope, receive, send)

    def _finish(self, scope: Scope, record: RequestRecord) -> None:
        route = scope.get("route")
        record.endpoint = getattr(route, "path", record.endpoint)
        ended_at = self._state.clock()
        measure(self._state.recorder, record, ended_at)
        if self._state.tracer is not None:
            self._state.tracer.on_request(scope, record, ended_at)
        log_request(record, ended_at, logging.DEBUG if record.endpoint in _PROBES else logging.INFO)


def _request_id(scope: Scope) -> str:
    sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return sent if _SANE_REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
