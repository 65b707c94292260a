"""The worker processes seen from the parent: start them together, listen, stop them, collect what they spooled."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import numpy as np

from loadtest.errors import WorkerError
from loadtest.histogram import Counts
from loadtest.kinds import Closed
from loadtest.records import Record, read_records
from loadtest.schedule import PlannedRequest
from loadtest.spec import Scenario
from loadtest.worker import STOP, Assignment, Done, Failed, Progress, Ready, process_main

START_DELAY_S = 0.1  # between the order to start and second 0, so that the order reaches every worker in time
JOIN_TIMEOUT_S = 10.0
EVENTS_PER_WORKER = 10_000  # per second: a worker at 36 µs of CPU per streamed event is then a third busy
STREAMS_PER_WORKER = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What the workers brought home. `cpu_ratios[worker]` holds one share of a core per half second."""

    records: list[Record]
    verifiable_paths: list[Path]
    gaps: Counts
    cpu_ratios: list[tuple[float, ...]]
    peak_memory_bytes: int


def suggest_workers(scenario: Scenario, requests: Sequence[PlannedRequest], cores: int) -> int:
    """As many as the busiest second's tokens (or a closed loop's streams) need, at most one per core."""
    if isinstance(scenario.arrivals, Closed):
        wanted = scenario.arrivals.concurrency / STREAMS_PER_WORKER
    else:
        seconds: Counter[int] = Counter()
        for request in requests:
            seconds[int(request.at_s or 0)] += request.output_tokens
        wanted = max(seconds.values()) / EVENTS_PER_WORKER
    return min(max(1, math.ceil(wanted)), cores)


class Joinable(Protocol):
    """A process or a thread."""

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool: ...


StartWorker = Callable[[Connection, Assignment], Joinable]


def start_process(connection: Connection, assignment: Assignment) -> Joinable:
    """A worker in a process of its own. Spawned: a fork would copy whatever threads and event loop the parent has."""
    process = multiprocessing.get_context("spawn").Process(
        target=process_main, args=(connection, assignment), daemon=True
    )
    process.start()
    connection.close()
    return process


class Workers:
    """`async with Workers(assignments) as workers: start_at = await workers.start(); harvest = await
    workers.finish(...)`."""

    def __init__(self, assignments: Iterable[Assignment], start_worker: StartWorker = start_process) -> None:
        self._assignments = list(assignments)
        self._start_worker = start_worker
        self._running: list[Joinable] = []
        self._connections: list[Connection] = []
        self._was_stopped = False

    async def __aenter__(self) -> Workers:
        for assignment in self._assignments:
            ours, theirs = multiprocessing.Pipe()
            self._connections.append(ours)
            self._running.append(self._start_worker(theirs, assignment))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self._connections:
            connection.close()  # a worker that is still at it reads this as the parent being gone
        for worker in self._running:
            await asyncio.to_thread(worker.join, JOIN_TIMEOUT_S)
            if worker.is_alive() and isinstance(worker, BaseProcess):
                worker.kill()

    async def start(self) -> float:
        """Wait until all are ready and start them at one instant; returns it (monotonic). Raises WorkerError."""
        for connection in self._connections:
            message = await _receive(connection)
            if not isinstance(message, Ready):
                raise WorkerError(f"A worker could not start: {message}")
        start_at = time.monotonic() + START_DELAY_S
        if not self._was_stopped:
            self._send_all(start_at)
        return start_at

    def stop(self) -> None:
        """Send no more requests; those in flight get a moment to finish."""
        if not self._was_stopped:
            self._was_stopped = True
            self._send_all(STOP)

    def _send_all(self, message: float | str) -> None:
        for connection in self._connections:
            try:
                connection.send(message)
            except OSError:
                continue  # that worker is gone; `finish` says so

    async def finish(self, on_progress: Callable[[int, Progress], None]) -> Harvest:
        """Listen until every worker is done. Raises WorkerError when one died."""
        dones = await asyncio.gather(*(self._listen(number, on_progress) for number in range(len(self._connections))))
        return Harvest(
            records=read_records(assignment.records_path for assignment in self._assignments),
            verifiable_paths=[a.verifiable_path for a in self._assignments if a.verifiable_path.exists()],
            gaps=np.sum([done.gaps for done in dones], axis=0),
            cpu_ratios=[done.cpu_ratios for done in dones],
            peak_memory_bytes=max(done.peak_memory_bytes for done in dones),
        )

    async def _listen(self, number: int, on_progress: Callable[[int, Progress], None]) -> Done:
        while True:
            message = await _receive(self._connections[number])
            match message:
                case Progress():
                    on_progress(number, message)
                case Done():
                    return message
                case Failed():
                    raise WorkerError(f"Worker {number} failed, which is a fault of the tester:\n{message.trace}")
                case _:
                    raise WorkerError(f"Worker {number} died without a word.")


async def _receive(connection: Connection) -> object:
    """The next message; None when the other end is gone."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection.fileno(), _wake, readable)
    try:
        await readable
        return connection.recv()
    except EOFError:
        return None
    finally:
        loop.remove_reader(connection.fileno())


def _wake(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
