"""CPU time per streamed token of each process on the way, with either data plane. Linux.

    python -m service.bench.data_plane

Starts the service with the synthetic runner (a token every 20 ms, no arithmetic), holds 16 streams open, and reads what
each process used from /proc. The replica's figure includes the synthetic engine.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from pathlib import Path

from service.bench.serving import RunningServer, running_server

NUM_STREAMS = 16
NUM_TOKENS = 300
COST = json.dumps({"base_s": 0.02})
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def main() -> None:
    for plane in ("haproxy", "serve"):
        with running_server("--runner", "synthetic", "--synthetic-cost", COST, "--data-plane", plane) as server:
            asyncio.run(_stream_all(server.port, num_tokens=5))
            before = _cpu_seconds(server)
            num_tokens = asyncio.run(_stream_all(server.port, NUM_TOKENS))
            used = {name: seconds - before.get(name, 0.0) for name, seconds in _cpu_seconds(server).items()}
        micros = {name: seconds / num_tokens * 1e6 for name, seconds in used.items()}
        shown = ", ".join(f"{name} {value:.0f}" for name, value in sorted(micros.items()) if value >= 1)
        print(f"{plane}: {sum(micros.values()):.0f} us of CPU per token over {num_tokens} tokens ({shown})")  # noqa: T201


async def _stream_all(port: int, num_tokens: int) -> int:
    """The number of tokens that all streams together brought."""
    return sum(await asyncio.gather(*[_stream(port, num_tokens) for _ in range(NUM_STREAMS)]))


async def _stream(port: int, num_tokens: int) -> int:
    body = json.dumps({"prompt": "x", "max_tokens": num_tokens, "ignore_eos": True, "stream": True})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = await reader.read()
    writer.close()
    assert b"[DONE]" in answer, answer[:500]
    return num_tokens


def _cpu_seconds(server: RunningServer) -> dict[str, float]:
    """User and system time so far of the server's processes on the way, by name."""
    seconds: dict[str, float] = defaultdict(float)
    for name, mark in (("replica", "ServeReplica"), ("proxy", "ProxyActor"), ("haproxy", "bin/haproxy")):
        for pid in server.processes(mark):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            seconds[name] += (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return seconds


if __name__ == "__main__":
    main()
