"""A client that goes ends its request wherever it is: nothing of it goes on in the backend."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.api.app import create_app
from service.api.logs import REQUEST_LOGGER
from service.text.parts import TokenizerParts
from service.text.tokenizer import Tokenizer
from tests.api.fakes import Script, ScriptedBackend, client_of, in_turn, make_parts, make_state, serving, tokens, wait


class Lines(logging.Handler):
    """The fields of the request log's lines."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: list[dict[str, object]] = []
        self._changed = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.fields.append(record.__dict__["fields"])
        self._changed.set()

    async def first(self) -> dict[str, object]:
        while not self.fields:
            self._changed.clear()
            await self._changed.wait()
        return self.fields[0]


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    logger = logging.getLogger(REQUEST_LOGGER)
    handler = Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


class HeldTokenizer(Tokenizer):
    """Takes until `go_on` is set to encode anything."""

    def __init__(self, parts: TokenizerParts) -> None:
        super().__init__(parts)
        self.has_begun = asyncio.Event()
        self.go_on = threading.Event()
        self._loop = asyncio.get_running_loop()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self._loop.call_soon_threadsafe(self.has_begun.set)
        self.go_on.wait()
        return super().encode(text, add_special_tokens=add_special_tokens)


@asynccontextmanager
async def connection(port: int, body: dict[str, object]) -> AsyncIterator[asyncio.StreamReader]:
    """A raw connection that has sent one completion request; it is closed without ado."""
    content = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
    await writer.drain()
    yield reader
    writer.transport.abort()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]])
@pytest.mark.parametrize("script", [wait, in_turn(tokens(b"ab"), wait)], ids=["queued", "running"])
async def test_the_client_goes(script: Script, prompt: object, stream: bool, lines: Lines) -> None:
    """Queued or running, streamed or not, one prompt or several: each is closed, and one log line says why."""
    backend = ScriptedBackend(script)
    num_prompts = len(prompt) if isinstance(prompt, list) else 1
    async with serving(create_app(make_state(backend))) as port:
        async with connection(port, {"prompt": prompt, "stream": stream}) as reader:
            await backend.until(lambda: len(backend.requests) == num_prompts)
            if stream and script is not wait:
                await reader.readuntil(b'"text":"b"' if num_prompts == 1 else b'"text":')
        line = await lines.first()

    assert sorted(backend.closed) == sorted(request.request_id for request in backend.requests)
    assert len(backend.closed) == num_prompts
    assert line["client_disconnected"] is True
    assert len(lines.fields) == 1


async def test_the_client_goes_while_its_prompt_is_tokenised(lines: Lines) -> None:
    """What nobody waits for is not admitted."""
    tokenizer = HeldTokenizer(make_parts())
    backend = ScriptedBackend()
    async with serving(create_app(make_state(backend, tokenizer=tokenizer))) as port:
        async with connection(port, {"prompt": "a"}):
            await tokenizer.has_begun.wait()
        line = await lines.first()
        tokenizer.go_on.set()

    assert line["client_disconnected"] is True
    assert line["status"] == 499
    assert backend.requests == []


async def test_the_client_goes_before_its_body_is_complete(lines: Lines) -> None:
    """Half a body is no request and no error of ours."""
    backend = ScriptedBackend()
    async with serving(create_app(make_state(backend))) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()
        line = await lines.first()

    assert line["client_disconnected"] is True
    assert backend.requests == []


async def test_others_are_served_while_a_prompt_is_tokenised() -> None:
    """Health answers although a prompt takes for ever."""
    tokenizer = HeldTokenizer(make_parts())
    async with client_of(ScriptedBackend(), tokenizer=tokenizer) as client:
        slow = asyncio.create_task(client.post("/v1/completions", json={"prompt": "a"}))
        await tokenizer.has_begun.wait()
        health = await client.get("/health")
        tokenizer.go_on.set()

        assert health.status_code == 200
        assert (await slow).status_code == 200


async def test_a_cancelled_request_is_closed() -> None:
    """A server that cancels the application's task, as Ray Serve does, leaves nothing behind either."""
    backend = ScriptedBackend(in_turn(tokens(b"ab"), wait))
    async with client_of(backend) as client:
        request = asyncio.create_task(client.post("/v1/completions", json={"prompt": "a", "stream": True}))
        await backend.until(lambda: bool(backend.requests))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    assert len(backend.closed) == 1


async def test_a_slow_reader_slows_the_source_down() -> None:
    """No more is read from the backend than the connection has taken."""
    backend = ScriptedBackend(tokens(b"x" * 200))
    app = create_app(make_state(backend))
    body = json.dumps({"prompt": "a", "stream": True, "max_tokens": 200}).encode()
    received = iter([{"type": "http.request", "body": body, "more_body": False}])
    is_full = asyncio.Event()

    async def receive() -> dict[str, object]:
        for message in received:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    num_sent = 0

    async def send(message: object) -> None:
        nonlocal num_sent
        num_sent += 1
        if num_sent == 5:
            is_full.set()
            await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    answering = asyncio.create_task(app(scope, receive, send))
    await is_full.wait()
    for _ in range(100):
        await asyncio.sleep(0)

    assert backend.streams[0].num_read == 4
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert len(backend.closed) == 1
