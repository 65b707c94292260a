"""None, one, two, one, none: the default model on a real fleet under a real HTTP load. Linux.

    python -m service.bench.fleet_cycle

Prints what became of every request, how long the starts took, what the second replica cost in memory, and the
decisions. A crowd of streams asks for more than one replica carries within its targets; then it goes, one by one.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

from service.bench.serving import RunningServer, running_server

MAX_REPLICAS = 2
SETTINGS = (
    *("--min-replicas", "0", "--max-replicas", str(MAX_REPLICAS), "--slo-tpot-s", "0.06", "--price-per-miss", "0.001"),
    *("--kv-cache-gib", "0.25", "--threads", "1"),
)
NUM_STREAMS = 12
MAX_TOKENS = 64
DEADLINE_S = 600.0
MIB = 1 << 20


@dataclass(slots=True)
class Tally:
    """What became of the requests, and what was measured on the way."""

    num_sent: int = 0
    num_answered: int = 0
    failures: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


class Cycle:
    """One server and the load on it."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._url = f"http://127.0.0.1:{server.port}"
        self._lock = threading.Lock()
        self.tally = Tally()

    def run(self) -> None:
        figures = self.tally.figures
        assert self._num_running() == 0
        began_at = time.monotonic()
        self._stream()
        figures["first answer from zero, s"] = time.monotonic() - began_at
        figures["one replica, PSS MiB"] = _pss_mib(self._server)
        is_over = threading.Event()
        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            for _ in range(NUM_STREAMS):
                pool.submit(self._crowd, is_over)
            self._until(lambda: self._num_running() == MAX_REPLICAS)
            time.sleep(10)  # of work for both
            figures["two replicas, PSS MiB"] = _pss_mib(self._server)
            is_over.set()
        is_over.clear()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(self._crowd, is_over)
            self._until(lambda: self._num_running() == 1)
            is_over.set()
        self._until(lambda: self._num_running() == 0)
        starts = self._get("/fleet")["start_times_s"]
        figures["start of the first replica, s"], figures["start of the second replica, s"] = starts[0], starts[1]
        figures["second replica, more PSS MiB"] = figures["two replicas, PSS MiB"] - figures["one replica, PSS MiB"]

    def decisions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("/fleet/decisions?changes=true&limit=3600")["decisions"]
        return found

    def _crowd(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            self._stream()

    def _stream(self) -> None:
        """One request to its end, on the books."""
        body = {"prompt": "Once upon a time", "max_tokens": MAX_TOKENS, "ignore_eos": True, "stream": True}
        ending = "nothing"
        try:
            with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=DEADLINE_S) as answer:
                lines = [line for line in answer.iter_lines() if line]
                ending = f"{answer.status_code} {lines[-1][:200]}"
        except httpx.HTTPError as error:
            ending = repr(error)
        with self._lock:
            self.tally.num_sent += 1
            if ending == "200 data: [DONE]":
                self.tally.num_answered += 1
            else:
                self.tally.failures.append(ending)

    def _num_running(self) -> int:
        return int(self._get("/fleet")["replica_states"].get("RUNNING", 0))

    def _get(self, path: str) -> Any:
        return httpx.get(f"{self._url}{path}", timeout=DEADLINE_S, trust_env=False).raise_for_status().json()

    @staticmethod
    def _until(is_true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_true():
            assert time.monotonic() < deadline, "the fleet did not follow"
            time.sleep(0.2)


def _pss_mib(server: RunningServer) -> float:
    """Of all replicas: their own memory, and their share of what is mapped by several."""
    total = 0.0
    for pid in server.processes(":headcount:Replica"):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += int(rollup.partition("Pss:")[2].split()[0]) * 1024 / MIB
    return total


@click.command()
def main() -> None:
    """Take the default model from no replica to two and back."""
    with tempfile.TemporaryDirectory() as state, running_server("--state-dir", state, *SETTINGS) as server:
        cycle = Cycle(server)
        cycle.run()
        decisions = cycle.decisions()
    tally = cycle.tally
    click.echo(f"{tally.num_answered} of {tally.num_sent} requests answered {json.dumps(tally.failures)}")
    for name, value in tally.figures.items():
        click.echo(f"{name:32} {value:.1f}")
    for decision in decisions:
        click.echo(f"{time.strftime('%H:%M:%S', time.localtime(decision['at']))}  {decision['reason']}")


if __name__ == "__main__":
    main()
