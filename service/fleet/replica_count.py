"""Among how many replicas the limits of a tenant are shared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from service.api.state import Clock
from service.config import Settings
from service.errors import UnavailableError
from service.fleet.brain_link import ask_brain

REFRESH_S = 5.0


class ReplicaCount:
    """The number of running replicas, as far as known. Call it in an event loop.

    It never waits: who asks gets the last number (at first `initial`), and has a new one fetched where that is older
    than REFRESH_S. Where nobody asks, nothing is fetched.
    """

    def __init__(self, initial: int, fetch: Callable[[], Awaitable[int]], clock: Clock) -> None:
        self._number = initial
        self._fetch = fetch
        self._clock = clock
        self._fetched_at: float | None = None
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> int:
        now = self._clock()
        if self._fetched_at is None or now - self._fetched_at >= REFRESH_S:
            self._fetched_at = now
            self._task = asyncio.create_task(self._refresh())
        return self._number

    async def _refresh(self) -> None:
        try:
            self._number = max(1, await self._fetch())
        except UnavailableError:  # the brain is started again: until then it is as it was
            return


def replica_count(settings: Settings) -> ReplicaCount:
    """Of this service, as the brain counts."""
    return ReplicaCount(max(1, settings.min_replicas), lambda: ask_brain("num_ready"), time.monotonic)
