"""Server-sent events: how they are written, and the response that sends them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from typing_extensions import override

DONE = b"data: [DONE]\n\n"


def event(payload: Mapping[str, object]) -> bytes:
    """One event. The JSON is ASCII: some clients break lines at U+2028 and U+0085 too."""
    return b"data: %b\n\n" % json.dumps(payload, separators=(",", ":")).encode()


def named_event(payload: Mapping[str, object]) -> bytes:
    """One event that is called by its type."""
    return b"event: %b\n%b" % (str(payload["type"]).encode(), event(payload))


class EventStream(Response):
    """Sends events as they come.

    Each write waits until the connection takes it, so a slow reader slows the source down rather than filling memory.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events):
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
