"""Over HTTP: so many clients, each with one stream after the other, on one server at a time."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import MappingProxyType

import httpx

from service.bench.peers.entrants import Entrant
from service.errors import StartupError
from service.fleet.environment import free_port

NUM_CLIENTS = 16
REQUESTS_EACH = 3
NUM_WORDS = 96
MAX_TOKENS = 48
ASKED = MappingProxyType(
    {
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
)
START_TIMEOUT_S = 300.0
PROBE_PERIOD_S = 0.5
STOP_TIMEOUT_S = 60.0
WORDS = (
    "red",
    "bird",
    "house",
    "over",
    "the",
    "old",
    "sea",
    "flew",
    "and",
    "sat",
    "on",
    "a",
    "mat",
    "by",
    "dawn",
    "how",
)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds: to each stream's first token, and from one token to the next after it, a mean for each stream."""

    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {"ttft_s": statistics.median(self.ttft_s), "tpot_s": statistics.median(self.tpot_s)}


def compare(entrants: Sequence[Entrant], num_rounds: int, say: Callable[[str], None]) -> Mapping[str, Latencies]:
    """In turns, each alone on the machine. Who does not start is left out, and said."""
    found: dict[str, Latencies] = {}
    for number in range(num_rounds):
        for entrant in entrants:
            rng = random.Random(number)
            try:
                with _running(entrant) as port:
                    asyncio.run(_load(port, 1, rng))  # so that nothing is used for the first time
                    latencies = asyncio.run(_load(port, REQUESTS_EACH, rng))
            except StartupError as error:
                say(f"{entrant.name} does not take part: {error}")
            else:
                kept = found.setdefault(entrant.name, Latencies())
                kept.ttft_s.extend(latencies.ttft_s)
                kept.tpot_s.extend(latencies.tpot_s)
    return found


@contextmanager
def _running(entrant: Entrant) -> Iterator[int]:
    """The port at which it answers. Raises StartupError if it does not come up."""
    port = free_port()
    server = subprocess.Popen(  # noqa: S603 - our own command
        [*entrant.command, str(port)],
        env=os.environ | entrant.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _await_ready(server, port)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _await_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StartupError(f"its server ended with status {server.returncode}")
        with suppress(httpx.HTTPError):
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                return
        time.sleep(PROBE_PERIOD_S)
    raise StartupError(f"its server was not ready within {START_TIMEOUT_S:.0f} s")


async def _load(port: int, requests_each: int, rng: random.Random) -> Latencies:
    latencies = Latencies()

    async def client() -> None:
        for _ in range(requests_each):
            await _stream(port, " ".join(rng.choices(WORDS, k=NUM_WORDS)), latencies)

    failures = await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)), return_exceptions=True)
    for failure in failures:
        if failure is not None:
            raise failure
    return latencies


async def _stream(port: int, prompt: str, latencies: Latencies) -> None:
    """One completion. Sockets, not a client library: the client shares the server's processors."""
    body = json.dumps({"prompt": prompt, **ASKED}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    sent_at = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    events = [(time.perf_counter(), line) async for line in reader if line.startswith(b'data: {"')]
    writer.close()
    usage = json.loads(events[-1][1].removeprefix(b"data: ")).get("usage") if events else None
    num_tokens = usage["completion_tokens"] if usage else 0
    if num_tokens != MAX_TOKENS:
        raise StartupError(f"its server streamed {num_tokens} tokens of {MAX_TOKENS}")
    arrivals = [arrived_at for arrived_at, _ in events]
    latencies.ttft_s.append(arrivals[0] - sent_at)
    latencies.tpot_s.append((arrivals[-1] - arrivals[0]) / (MAX_TOKENS - 1))
