"""Among how many replicas limits are shared: known without waiting, fetched when it is asked for."""

from __future__ import annotations

import asyncio

from service.errors import UnavailableError
from service.fleet.replica_count import REFRESH_S, ReplicaCount


class World:
    """A brain that knows `number` (None: it does not answer), and a clock set by hand."""

    def __init__(self) -> None:
        self.number: int | None = 3
        self.now = 100.0
        self.num_fetches = 0
        self.count = ReplicaCount(1, self.fetch, lambda: self.now)

    async def fetch(self) -> int:
        self.num_fetches += 1
        if self.number is None:
            raise UnavailableError("The autoscaler does not answer at the moment.")
        return self.number

    async def ask(self, *, after_s: float = REFRESH_S) -> tuple[int, int]:
        """What is answered at once, and once what was fetched is there."""
        self.now += after_s
        first = self.count()
        await asyncio.sleep(0)
        return first, self.count()


async def test_the_answer_never_waits_for_the_brain() -> None:
    """At first it is the initial one, then what was fetched last."""
    world = World()

    assert await world.ask() == (1, 3)
    world.number = 5
    assert await world.ask() == (3, 5)


async def test_it_is_fetched_when_it_is_old_and_asked_for() -> None:
    """Once per period, however many ask; never, if nobody does."""
    world = World()
    for _ in range(10):
        await world.ask(after_s=0)
    assert world.num_fetches == 1

    await world.ask(after_s=REFRESH_S - 0.001)
    assert world.num_fetches == 1
    await world.ask(after_s=0.001)
    assert world.num_fetches == 2


async def test_a_brain_that_is_silent_or_sees_none_changes_nothing_for_the_worse() -> None:
    """The last number holds; this replica itself is one, whatever is said."""
    world = World()
    await world.ask()
    world.number = None
    assert await world.ask() == (3, 3)
    world.number = 0
    assert await world.ask() == (3, 1)
