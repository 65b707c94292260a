"""One worker process: sends its share of the schedule, spools records to disk, tells the parent how it goes.

Messages to the parent: `Ready`, then `Progress` twice a second, then `Done` or `Failed`. From the parent: the
instant to start at (float, monotonic), then perhaps `STOP`. When the parent is gone, the worker stops by itself.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

import httpx

from loadtest.client import CONNECT_TIMEOUT_S, Client, Endpoint, Timeline
from loadtest.histogram import Counts, GapHistogram
from loadtest.kinds import Closed
from loadtest.prompts import Prompts, Vocabulary
from loadtest.records import Outcome, Record, RecordWriter
from loadtest.runner import Runner
from loadtest.schedule import FilePrompt, PlannedRequest, conversations, share_of
from loadtest.spec import Scenario
from loadtest.transport import StreamTransport

STOP = "stop"
PROGRESS_EVERY_S = 0.5
MAX_RECENT = 256  # latencies per progress message


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """All a worker needs; the schedule is whole, and the worker picks its own conversations from it."""

    worker: int
    num_workers: int
    scenario: Scenario
    requests: tuple[PlannedRequest, ...]
    endpoint: Endpoint
    vocabulary: Vocabulary
    file_prompts: tuple[FilePrompt, ...]
    folder: Path

    @property
    def records_path(self) -> Path:
        return self.folder / f"records-{self.worker}.csv"

    @property
    def verifiable_path(self) -> Path:
        return self.folder / f"verifiable-{self.worker}.jsonl"


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker waits for the instant to start at."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """Since the start: counts. Since the last message: latencies (seconds), the CPU share of one core."""

    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    ttfts_s: list[float] = field(default_factory=list)
    tpots_s: list[float] = field(default_factory=list)
    cpu_ratio: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """`cpu_ratios`: this process's share of one core in each half second; `gaps`: see GapHistogram."""

    cpu_ratios: tuple[float, ...]
    peak_memory_bytes: int
    gaps: Counts


@dataclass(frozen=True, slots=True)
class Failed:
    """A fault of the tester."""

    trace: str


class _Spool:
    """Where the runner reports (`runner.Sink`): records to a file, counts to the next progress message."""

    def __init__(self, assignment: Assignment) -> None:
        self._records = RecordWriter(assignment.records_path)
        self._path = assignment.verifiable_path
        self._verifiable: TextIO | None = None
        self._progress = Progress()

    def sent(self) -> None:
        self._progress.sent += 1

    def finished(self, record: Record) -> None:
        self._records.write(record)
        self._progress.outcomes[record.outcome] += 1
        if record.outcome is Outcome.OK and len(self._progress.ttfts_s) < MAX_RECENT:
            self._progress.ttfts_s.append(record.ttft_s or 0.0)
            if record.tpot_s is not None:
                self._progress.tpots_s.append(record.tpot_s)

    def verifiable(self, index: int, body: bytes, text: str) -> None:
        if self._verifiable is None:
            self._verifiable = self._path.open("w")
        self._verifiable.write(json.dumps({"index": index, "body": body.decode(), "text": text}) + "\n")

    def take_progress(self, cpu_ratio: float) -> Progress:
        taken = self._progress
        over = sum(count for outcome, count in taken.outcomes.items() if Outcome(outcome).was_sent)
        taken.in_flight, taken.cpu_ratio = taken.sent - over, cpu_ratio
        self._progress = Progress(sent=taken.sent, outcomes=Counter(taken.outcomes))
        return taken

    def close(self) -> None:
        self._records.close()
        if self._verifiable is not None:
            self._verifiable.close()


def process_main(connection: Connection, assignment: Assignment) -> None:
    """Entry point of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    # Each stream in flight is an open socket, and many systems allow 1,024 files unless asked for more.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # A full collection over a large schedule would stop the clock of every stream; nothing in it is garbage.
    gc.collect()
    gc.freeze()
    work(connection, assignment)


def work(connection: Connection, assignment: Assignment) -> None:
    """Carry out the assignment, in whatever process or thread this is."""
    try:
        asyncio.run(_work(connection, assignment))
    except Exception:  # noqa: BLE001 - whatever it was, the parent must hear of it
        connection.send(Failed(traceback.format_exc()))


async def _work(connection: Connection, assignment: Assignment) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    connection.send(Ready())
    order = await loop.run_in_executor(None, connection.recv)
    if order == STOP:
        stop.set()
    timeline = Timeline(time.monotonic() if order == STOP else order)
    loop.add_reader(connection.fileno(), _hear, connection, stop)
    spool, gaps = _Spool(assignment), GapHistogram(len(assignment.requests))
    cpu_ratios: list[float] = []
    reporter = asyncio.create_task(_report(connection, spool, cpu_ratios))
    try:
        await _send_all(assignment, timeline, gaps, spool, stop)
    finally:
        reporter.cancel()
        loop.remove_reader(connection.fileno())
        spool.close()
    connection.send(spool.take_progress(0.0))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    connection.send(Done(cpu_ratios=tuple(cpu_ratios), peak_memory_bytes=peak_bytes, gaps=gaps.counts))


async def _send_all(
    assignment: Assignment, timeline: Timeline, gaps: GapHistogram, spool: _Spool, stop: asyncio.Event
) -> None:
    scenario, number, num_workers = assignment.scenario, assignment.worker, assignment.num_workers
    limits = scenario.limits.model_copy(
        update={"max_in_flight": max(1, scenario.limits.max_in_flight // assignment.num_workers)}
    )
    prompts = Prompts(scenario.seed, assignment.vocabulary, assignment.file_prompts)
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
    async with httpx.AsyncClient(transport=StreamTransport(), timeout=timeout, trust_env=False) as http:
        client = Client(http, assignment.endpoint, timeline, gaps, scenario.warmup_s)
        runner = Runner(client, prompts, scenario.workload.tenants, limits, spool, stop)
        mine = conversations(assignment.requests, number, num_workers)
        if isinstance(scenario.arrivals, Closed):
            await runner.closed_loop(mine, share_of(scenario.arrivals.concurrency, number, num_workers))
        else:
            await runner.open_loop(mine)


def _hear(connection: Connection, stop: asyncio.Event) -> None:
    try:
        connection.recv()
    except EOFError:
        asyncio.get_running_loop().remove_reader(connection.fileno())
    stop.set()


async def _report(connection: Connection, spool: _Spool, cpu_ratios: list[float]) -> None:
    """Progress twice a second. The CPU share is over what really elapsed, which is longer when the loop is late."""
    wall, cpu = time.monotonic(), time.process_time()
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        wall_now, cpu_now = time.monotonic(), time.process_time()
        cpu_ratios.append((cpu_now - cpu) / (wall_now - wall))
        wall, cpu = wall_now, cpu_now
        connection.send(spool.take_progress(cpu_ratios[-1]))
