"""Whole runs in this process, against a scripted server."""

from __future__ import annotations

import asyncio
import threading
from multiprocessing.connection import Connection
from typing import Any

from loadtest.experiment import Observer, Where, run_experiment
from loadtest.records import Record
from loadtest.results import RunResult
from loadtest.scenario import parse_scenario
from loadtest.worker import Assignment, work
from loadtest.workers import StartWorker
from tests.loadtest.scripted import ScriptedServer


def start_thread(connection: Connection, assignment: Assignment) -> threading.Thread:
    """A worker in this process: quicker to start than a process of its own."""
    thread = threading.Thread(target=work, args=(connection, assignment), daemon=True)
    thread.start()
    return thread


async def run(
    server: ScriptedServer,
    *,
    num_workers: int = 1,
    start_worker: StartWorker = start_thread,
    observer: Observer | None = None,
    stop: asyncio.Event | None = None,
    **scenario: Any,
) -> tuple[RunResult, list[Record]]:
    base: dict[str, Any] = {
        "arrivals": {"kind": "constant", "rate_rps": 40, "duration_s": 1},
        "limits": {"accepted_lateness_s": 10},  # a busy test machine is not what these tests are about
    }
    return await run_experiment(
        parse_scenario({**base, **scenario}),
        Where(url=server.url),
        num_workers=num_workers,
        observer=observer or Observer(),
        stop=stop or asyncio.Event(),
        start_worker=start_worker,
    )
