"""The transport is a correct HTTP/1.1 client for what servers send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from loadtest.transport import StreamTransport

PAUSE = b"<pause>"  # in an answer: what follows arrives later, by itself
PAUSE_S = 0.02


@asynccontextmanager
async def _serve(*answers: bytes, keeps_open: bool = True) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that gives these answers in turn; yields its URL and the number of connections so far."""
    left, connections = list(answers), [0]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[0] += 1
        try:
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
                )
                await reader.readexactly(length)
                first, *later = left.pop(0).split(PAUSE)
                writer.write(first)
                for part in later:
                    await asyncio.sleep(PAUSE_S)
                    writer.write(part)
                await writer.drain()
                if not keeps_open:
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", connections
        server.close()


def _http() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=StreamTransport(), trust_env=False)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, b"hello"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
            200,
            b"hello world",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nno", 404, b"no"),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n<pause>HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<pause>la<pause>te",
            200,
            b"late",
        ),
    ],
)
async def test_bodies(answer: bytes, status: int, body: bytes) -> None:
    """Lengths, chunks, nothing, and announcements before the answer."""
    async with _serve(answer) as (url, _), _http() as http:
        response = await http.post(url, content=b"question")

    assert (response.status_code, response.content) == (status, body)


async def test_a_body_may_end_with_its_connection() -> None:
    """Without length or chunks, the end of the connection is the end of the body."""
    async with _serve(b"HTTP/1.1 200 OK\r\n\r\nall of it", keeps_open=False) as (url, _), _http() as http:
        response = await http.get(url)

    assert response.content == b"all of it"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
async def test_broken_answers_are_protocol_errors(answer: bytes) -> None:
    """Cut bodies, other protocols and silence raise what httpx raises."""
    async with _serve(answer, keeps_open=False) as (url, _), _http() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(url)


async def test_connections_are_kept_and_replaced() -> None:
    """Two answers on one connection; when the server has closed it, the next request opens another."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    async with _serve(answer, answer, answer) as (url, connections), _http() as http:
        assert [(await http.get(url)).text for _ in range(2)] == ["ok", "ok"]
        assert connections == [1]
    async with (
        _serve(answer, answer, answer, keeps_open=False) as (url, connections),
        _http() as http,
        _http() as other,
    ):
        first = await http.get(url)
        await other.get(url)  # while it is answered, word of the first connection's end arrives
        assert (first.text, (await http.get(url)).text) == ("ok", "ok")
        assert connections == [3]


async def test_close_is_honoured() -> None:
    """A server that says `connection: close` gets no second request on it."""
    answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
    async with _serve(answer, answer) as (url, connections), _http() as http:
        assert [(await http.get(url)).text for _ in range(2)] == ["ok", "ok"]
        assert connections == [2]


async def test_a_refused_connection_is_a_connect_error() -> None:
    """As httpx names it."""
    async with _http() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:9/")
