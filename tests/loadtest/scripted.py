"""A server whose every delay and fault is scripted, on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

TEMPLATE_TOKENS = 4  # what this server's chat template adds to a prompt
ROUGH_WORD = "business"  # the one word that this server's tokenizer splits in two


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How one request is answered.

    `fault`: None, or "cut" (closed after half the tokens), "hang_up" (closed before any header), "malformed" (an
    event that is not JSON), "garbage" (lines that are no events), "error_event" (an error in mid-stream), "no_done"
    (ends without [DONE]), or "refuse" (`status` with `headers`).
    """

    ttft_s: float = 0.0
    gap_s: float = 0.0
    fault: str | None = None
    status: int = 429
    headers: dict[str, str] = field(default_factory=dict)
    text_suffix: str = ""


Script = Callable[[int], Reply]  # number of the request (0, 1, …) to its reply


def steady(reply: Reply) -> Script:
    return lambda number: reply


@dataclass(slots=True)
class Seen:
    """One completion request as it arrived."""

    at: float
    headers: dict[str, str]
    body: dict[str, Any]


class ScriptedServer:
    """`with ScriptedServer(script) as server:` serves at `server.url`. `stall` (start, end) in seconds after the first
    completion request: within it the server answers nothing. `concurrency`: requests served at a time, the rest queue.
    """

    def __init__(
        self,
        script: Script,
        *,
        stall: tuple[float, float] | None = None,
        concurrency: int | None = None,
        has_metrics: bool = True,
        has_tokenize: bool = True,
        extras: dict[str, Any] | None = None,
    ) -> None:
        self._script = script
        self._stall = stall
        self._concurrency = concurrency
        self._has_metrics = has_metrics
        self._has_tokenize = has_tokenize
        self._extras = extras or {}
        self.seen: list[Seen] = []
        self.has_been_asked = threading.Event()
        self.num_disconnects = 0
        self.counters = {"requests": 0, "prompt_tokens": 0, "generation_tokens": 0}

    def __enter__(self) -> Self:
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._slots = asyncio.Semaphore(self._concurrency or 1_000_000)
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=4096)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        server.close()
        current = asyncio.current_task()
        pending = [task for task in asyncio.all_tasks() if task is not current]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = request_line.split()
        if method == "POST" and path in {"/v1/chat/completions", "/v1/completions"}:
            return await self._complete(Seen(time.monotonic(), headers, json.loads(data)), writer)
        answer = self._side(path, data)
        body = (
            b"{}" if answer is None else (answer.encode() if isinstance(answer, str) else json.dumps(answer).encode())
        )
        status = "404 Not Found" if answer is None else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nserver: scripted\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        return True

    def _side(self, path: str, data: bytes) -> object:
        """What the other routes answer; None is 404."""
        if path == "/v1/models":
            return {"object": "list", "data": [{"id": "scripted-model"}]}
        if path == "/metrics" and self._has_metrics:
            return self._metrics()
        if path == "/tokenize" and self._has_tokenize:
            return {"count": _count_tokens(json.loads(data))}
        return self._extras.get(path)

    def _metrics(self) -> str:
        running = len(self.seen) - self.counters["requests"]
        return (
            "".join(
                f'# TYPE vllm:{name} {kind}\nvllm:{name}{suffix}{{model_name="m"}} {value}\n'
                for name, kind, suffix, value in (
                    ("request_success", "counter", "_total", self.counters["requests"]),
                    ("prompt_tokens", "counter", "_total", self.counters["prompt_tokens"]),
                    ("generation_tokens", "counter", "_total", self.counters["generation_tokens"]),
                    ("num_requests_running", "gauge", "", running),
                    ("num_requests_waiting", "gauge", "", 0),
                )
            )
            + "# TYPE headcount_replicas gauge\nheadcount_replicas 2\n"
        )

    async def _complete(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        number = len(self.seen)
        self.seen.append(seen)
        self.has_been_asked.set()
        reply = self._script(number)
        if reply.fault == "hang_up":
            return False
        if reply.fault == "refuse":
            return self._refuse(reply, writer)
        async with self._slots:
            await self._stalled()
            await asyncio.sleep(reply.ttft_s)
            return await self._stream(seen, reply, writer)

    def _refuse(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        error = {"message": "come back later", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
        body = json.dumps({"error": error}).encode()
        headers = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        writer.write(f"HTTP/1.1 {reply.status} No\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body)
        return True

    async def _stalled(self) -> None:
        if self._stall is None:
            return
        start, end = (self.seen[0].at + offset for offset in self._stall)
        if start <= time.monotonic() < end:
            await asyncio.sleep(end - time.monotonic())

    async def _stream(self, seen: Seen, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        count, prompt_tokens = seen.body["max_tokens"], _count_tokens(seen.body)
        self.counters["prompt_tokens"] += prompt_tokens
        _event(writer, _delta(""))  # the role: not a token
        try:
            for index in range(count):
                if index > 0 and reply.gap_s > 0:
                    await asyncio.sleep(reply.gap_s)
                if index == count // 2 and _break(writer, reply.fault):
                    await writer.drain()
                    return False
                _event(writer, _delta(f" {index}{reply.text_suffix}"))
                self.counters["generation_tokens"] += 1
                await writer.drain()
        except OSError:
            self.num_disconnects += 1
            raise
        finally:
            self.counters["requests"] += 1
        _event(writer, _delta("", finish_reason="length"))
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": count, "total_tokens": prompt_tokens + count}
        _event(writer, {"choices": [], "usage": usage})
        if reply.fault != "no_done":
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def _break(writer: asyncio.StreamWriter, fault: str | None) -> bool:
    """Do what the fault says in the middle of a stream; whether the stream is over."""
    if fault == "malformed":
        _chunk(writer, b"data: {not json\n\n")
    elif fault == "garbage":
        _chunk(writer, b"<html>bad gateway</html>\n\n")
    elif fault == "error_event":
        _event(
            writer, {"error": {"message": "out of memory \ud800", "type": "server_error", "param": None, "code": "oom"}}
        )
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
    return fault in {"cut", "error_event", "malformed", "garbage"}


def _count_tokens(body: dict[str, Any]) -> int:
    """One per word, but two for one of them, and a template around a chat."""
    texts = [message["content"] for message in body["messages"]] if "messages" in body else [body["prompt"]]
    words = " ".join(texts).split()
    return len(words) + words.count(ROUGH_WORD) + (TEMPLATE_TOKENS if "messages" in body else 0)


def _delta(text: str, finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": finish_reason}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], "usage": None}


def _event(writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(body).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
