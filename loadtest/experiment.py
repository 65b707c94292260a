"""One run from scenario to result: probe, plan, scrape, load, scrape, repeat, measure."""

from __future__ import annotations

import asyncio
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from loadtest.assemble import Evidence, assemble
from loadtest.client import CONNECT_TIMEOUT_S, Client, Endpoint, Timeline
from loadtest.histogram import GapHistogram
from loadtest.kinds import Closed
from loadtest.prompts import load_prompts
from loadtest.records import Record
from loadtest.results import RunResult, Verification
from loadtest.schedule import FilePrompt, Schedule, make_schedule
from loadtest.scrape import SCRAPE_EVERY_S, Scraper, Snapshot
from loadtest.spec import Scenario
from loadtest.target import Target, plain_client, probe
from loadtest.transport import StreamTransport
from loadtest.verify import read_answered, verify
from loadtest.worker import Assignment, Progress
from loadtest.workers import Harvest, StartWorker, Workers, start_process, suggest_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The server to test. `url` has been through `target.check_host`."""

    url: str
    model: str | None = None
    api_key: str | None = None  # for probes and metrics; tenants bring their own for the load


class Observer:
    """Sees a run as it goes; this one looks away. `watch` has one that draws."""

    def started(self, schedule: Schedule, start_at: float) -> None:
        """Second 0 is at `start_at` (monotonic)."""

    def progress(self, worker: int, progress: Progress) -> None:
        """A worker's counts."""

    def scraped(self, snapshot: Snapshot) -> None:
        """The server's numbers, once a second."""


async def run_experiment(
    scenario: Scenario,
    where: Where,
    *,
    num_workers: int | None,
    observer: Observer,
    stop: asyncio.Event,
    start_worker: StartWorker = start_process,
) -> tuple[RunResult, list[Record]]:
    """Run `scenario` and measure it; setting `stop` ends it early, and the result covers what there is.

    `num_workers` None: as many as the load needs and the machine has cores for. Raises ScenarioError, TargetError or
    WorkerError.
    """
    file_prompts = load_prompts(Path(scenario.workload.prompts_file)) if scenario.workload.prompts_file else ()
    schedule = make_schedule(scenario, file_prompts)
    for tenant in scenario.workload.tenants:
        tenant.key()  # a key that is missing is noticed here, not in a worker
    if num_workers is None:
        num_workers = suggest_workers(scenario, schedule.requests, os.cpu_count() or 1)
    if isinstance(scenario.arrivals, Closed):
        num_workers = min(num_workers, scenario.arrivals.concurrency)  # a worker without a client would send nothing
    async with plain_client(where.api_key) as http:
        target = await probe(http, where.url, where.model, scenario.api)
        with tempfile.TemporaryDirectory(prefix="loadtest-") as folder:
            experiment = _Experiment(scenario, target, schedule, http, observer)
            assignments = experiment.assign(file_prompts, Path(folder), num_workers)
            async with Workers(assignments, start_worker) as workers:
                evidence = await experiment.run(workers, stop)
    return assemble(evidence), evidence.harvest.records


class _Experiment:
    def __init__(
        self, scenario: Scenario, target: Target, schedule: Schedule, http: httpx.AsyncClient, observer: Observer
    ) -> None:
        self._scenario = scenario
        self._target = target
        self._schedule = schedule
        self._scraper = Scraper(http, target.url)
        self._observer = observer
        self._endpoint = Endpoint(
            url=target.url,
            model=target.model,
            api=scenario.api,
            ignore_eos=scenario.workload.ignore_eos,
            extra_body=scenario.workload.extra_body,
        )

    async def run(self, workers: Workers, stop: asyncio.Event) -> Evidence:
        stopper = asyncio.create_task(_stop_when(stop, workers))
        try:
            before = await self._scraper.snapshot(0.0)
            start_at = await workers.start()
            started = datetime.now(UTC)
            self._observer.started(self._schedule, start_at)
            harvest, snapshots = await self._load(workers, Timeline(start_at))
        finally:
            stopper.cancel()
        after = await self._scraper.settled(Timeline(start_at).now_s()) if before else None
        return Evidence(
            scenario=self._scenario,
            target=self._target,
            schedule=self._schedule,
            started=started,
            harvest=harvest,
            snapshots=snapshots,
            before=before,
            after=after,
            # Whoever stops a run does not want to wait for repetitions.
            verification=None if stop.is_set() else await self._verify(harvest, start_at),
            decisions=await self._scraper.decisions(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            command=shlex.join(sys.argv),
        )

    def assign(self, file_prompts: tuple[FilePrompt, ...], folder: Path, num_workers: int) -> Iterator[Assignment]:
        for worker in range(num_workers):
            yield Assignment(
                worker=worker,
                num_workers=num_workers,
                scenario=self._scenario,
                requests=self._schedule.requests,
                endpoint=self._endpoint,
                vocabulary=self._target.vocabulary,
                file_prompts=file_prompts,
                folder=folder,
            )

    async def _load(self, workers: Workers, timeline: Timeline) -> tuple[Harvest, list[Snapshot]]:
        """Listen to the workers and scrape beside them."""
        snapshots: list[Snapshot] = []

        async def scrape() -> None:
            while True:
                snapshot = await self._scraper.snapshot(timeline.now_s())
                if snapshot is not None:
                    snapshots.append(snapshot)
                    self._observer.scraped(snapshot)
                await asyncio.sleep(SCRAPE_EVERY_S)

        scraping = asyncio.create_task(scrape())
        try:
            harvest = await workers.finish(self._observer.progress)
        finally:
            scraping.cancel()
            with suppress(asyncio.CancelledError):
                await scraping
        return harvest, snapshots

    async def _verify(self, harvest: Harvest, start_at: float) -> Verification | None:
        if self._scenario.verify_share == 0:
            return None
        key = self._scenario.workload.tenants[0].key()
        async with httpx.AsyncClient(
            transport=StreamTransport(), timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S), trust_env=False
        ) as http:
            client = Client(http, self._endpoint, Timeline(start_at), GapHistogram(1))
            answers = read_answered(harvest.verifiable_paths)
            return await verify(answers, client, key, self._scenario.limits.timeout_s)


async def _stop_when(stop: asyncio.Event, workers: Workers) -> None:
    await stop.wait()
    workers.stop()
