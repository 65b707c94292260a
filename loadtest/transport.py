"""HTTP/1.1 for httpx with little work per received chunk.

Why not httpx's own transport: it spends about 140 µs of CPU on each streamed event, and a tester that shares the
machine with the server takes that time away from what it measures. This one parses in C (httptools) straight from
the event loop's callback, for about a quarter of that. It knows what the tester needs: HTTP/1.1, TLS, keep-alive, a
connect timeout. Other timeouts are the caller's (`asyncio.timeout`), and it opens as many connections as there are
requests in flight.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import cast

import httptools
import httpx

Origin = tuple[str, str, int]  # scheme, host, port


class _Connection(asyncio.Protocol):
    """One socket. Reads what the server sends for the request in progress; its owner waits with `wait()`."""

    def __init__(self) -> None:
        self.is_closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.has_headers = False
        self.is_complete = False
        self._is_kept_alive = False
        self.error: str | None = None

    @property
    def status_code(self) -> int:
        return int(self._parser.get_status_code())

    @property
    def can_be_reused(self) -> bool:
        return self.is_complete and not self.is_closed and self._is_kept_alive

    def send(self, data: bytes) -> None:
        """Start the next request."""
        self._begin()
        self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    async def wait(self) -> None:
        """Return when something has arrived or the connection is gone."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.error = f"The server does not speak HTTP/1.1: {error}"
            self._transport.close()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        names = {name.lower() for name, _ in self.headers}
        if self.has_headers and exc is None and not names & {b"content-length", b"transfer-encoding"}:
            self.is_complete = True  # such a body ends where the connection ends (RFC 9112 §6.3)
        if not self.is_complete and self.error is None:
            self.error = str(exc) if exc else "The server closed the connection before its response was complete"
        self._wake()

    # httptools callbacks
    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.status_code >= 200:  # noqa: PLR2004 - 1xx are announcements, the response follows
            self.has_headers = True
        else:
            self.headers.clear()

    def on_body(self, data: bytes) -> None:
        self.body.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = self.has_headers
        self._is_kept_alive = bool(self._parser.should_keep_alive())  # not known any more after this callback


class _Body(httpx.AsyncByteStream):
    def __init__(self, connection: _Connection, idle: list[_Connection]) -> None:
        self._connection = connection
        self._idle = idle

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        while True:
            if connection.body:
                data = b"".join(connection.body)
                connection.body.clear()
                yield data
            elif connection.is_complete:
                return
            elif connection.error is not None:
                raise httpx.RemoteProtocolError(connection.error)
            else:
                await connection.wait()

    async def aclose(self) -> None:
        if self._connection.can_be_reused:
            self._idle.append(self._connection)
        else:
            self._connection.close()


class StreamTransport(httpx.AsyncBaseTransport):
    """Use as `httpx.AsyncClient(transport=StreamTransport())`. Errors are httpx's own."""

    def __init__(self) -> None:
        self._idle: defaultdict[Origin, list[_Connection]] = defaultdict(list)
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        data = _head(request) + await request.aread()
        url = request.url
        origin = (url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80))
        connection = self._take(origin) or await self._connect(origin, request)
        try:
            await _exchange(connection, data)
        except BaseException:
            connection.close()
            raise
        if not connection.has_headers:
            # Never sent again by itself, as clients do on a kept connection: a server that drops requests would go
            # unseen.
            connection.close()
            raise httpx.RemoteProtocolError(connection.error or "No response", request=request)
        return httpx.Response(
            connection.status_code, headers=connection.headers, stream=_Body(connection, self._idle[origin])
        )

    async def aclose(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _take(self, origin: Origin) -> _Connection | None:
        idle = self._idle[origin]
        while idle:
            connection = idle.pop()
            if not connection.is_closed:
                return connection
        return None

    async def _connect(self, origin: Origin, request: httpx.Request) -> _Connection:
        scheme, host, port = origin
        if scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(request.extensions.get("timeout", {}).get("connect")):
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host, port, ssl=self._tls if scheme == "https" else None
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout("The server did not accept the connection in time", request=request) from error
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        return connection


def _head(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _exchange(connection: _Connection, data: bytes) -> None:
    """Send a request and wait until its headers are here or never will be."""
    connection.send(data)
    while not connection.has_headers and connection.error is None:
        await connection.wait()
