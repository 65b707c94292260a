"""A started backend over a model that computes when it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from service.backend import TokenStream
from service.engine.batch import Batch
from service.engine.config import EngineConfig, LoopConfig
from service.engine.core import EngineCore
from service.engine.loop import EngineBackend
from service.engine.runner_protocol import SequenceResult
from service.types import StepStats, TokenEvent
from tests.engine.fakes import FakeClock, HistoryRunner

LONG = 50  # tokens: so many steps that a request is surely still running


@dataclass(kw_only=True)
class GatedRunner(HistoryRunner):
    """Computes a step for each `permits.release()`; `free_run` opens the gate for good."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_free: bool = False
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def execute(self, batch: Batch) -> list[SequenceResult]:
        self.entered.release()
        if not self.is_free:
            self.permits.acquire()
        return super().execute(batch)

    def free_run(self) -> None:
        self.is_free = True
        self.permits.release()

    async def wait_until_entered(self) -> None:
        """The engine is inside a step."""
        await asyncio.to_thread(self.entered.acquire)


@dataclass
class Observed:
    """Every step's stats; `wait_for` returns when one satisfies a condition."""

    steps: list[StepStats] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, stats: StepStats) -> None:
        with self.changed:
            self.steps.append(stats)
            self.changed.notify_all()

    async def wait_for(self, condition: Callable[[StepStats], bool]) -> None:
        def wait() -> None:
            with self.changed:
                self.changed.wait_for(lambda: any(condition(stats) for stats in self.steps))

        await asyncio.to_thread(wait)


@asynccontextmanager
async def serving(
    runner: HistoryRunner,
    *,
    observer: Callable[[StepStats], None] | None = None,
    clock: FakeClock | None = None,
    core_type: type[EngineCore] = EngineCore,
    **limits: Any,
) -> AsyncIterator[EngineBackend]:
    """A started backend of 2 running sequences, closed at the end."""
    clock = clock or FakeClock()
    core = core_type(runner, EngineConfig(max_num_seqs=2, max_num_batched_tokens=16), clock)
    backend = EngineBackend(core, LoopConfig(**limits), observer=observer, clock=clock)
    backend.start()
    try:
        yield backend
    finally:
        if isinstance(runner, GatedRunner):
            runner.free_run()
        await asyncio.to_thread(backend.close)


def wait_until_stopping(backend: EngineBackend) -> None:
    with backend._changed:
        backend._changed.wait_for(lambda: backend._is_stopping)


async def read(stream: TokenStream) -> list[TokenEvent]:
    return [event async for event in stream]


def tokens(events: list[TokenEvent]) -> tuple[int, ...]:
    return tuple(token_id for event in events for token_id in event.token_ids)
