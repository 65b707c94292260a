"""Whose waiting sequence is next: first come, first served within a tenant, and fair shares of tokens between tenants.

Each tenant has a counter of the tokens that it was served, over its weight, and the one with the lowest goes next: the
virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024). Who comes back is lifted
to a little below the counter of who went last: it may come with a burst, but not save up a claim by asking for nothing.
A higher priority goes before all that. With one tenant this is a plain queue.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from service.engine.sequence import Sequence

OUTPUT_COST = 2.0  # of a generated token, where a prompt token that is computed costs 1: as in the paper


@dataclass(slots=True)
class _Flow:
    """The sequences of one tenant at one priority. `served` is in tokens of weight 1."""

    priority: int
    served: float
    weight: float = 1.0
    num_running: int = 0
    waiting: deque[Sequence] = field(default_factory=deque)

    @property
    def turn(self) -> tuple[int, float, float, float]:
        """The lowest goes next; of equals who has the fewest places for its weight, then who came first."""
        return (-self.priority, self.served, self.num_running / self.weight, self.waiting[0].arrival_at)


class FairQueue:
    """The waiting sequences, and how many of each tenant run. Each is pushed, then removed, or begun and ended.

    `credit` is how many tokens (of weight 1) a tenant may have been served less than others when it comes back.
    """

    def __init__(self, credit: float = 0.0) -> None:
        self._credit = credit
        self._flows: dict[tuple[int, str], _Flow] = {}
        self._served_last: dict[int, float] = {}  # by priority: the counter of who went last
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        """Tenant by tenant, each in the order of its queue."""
        return (sequence for flow in self._flows.values() for sequence in flow.waiting)

    def push(self, sequence: Sequence) -> None:
        """To the end of its tenant's queue."""
        key = sequence.claim.priority, sequence.claim.tenant
        flow = self._flows.setdefault(key, _Flow(sequence.claim.priority, served=-math.inf))
        flow.weight = sequence.claim.weight
        if not flow.waiting:
            flow.served = max(flow.served, self._served_last.get(flow.priority, 0.0) - self._credit)
        flow.waiting.append(sequence)
        self._num_waiting += 1

    def send_back(self, sequence: Sequence) -> None:
        """A running one gives up its place and goes to the front of its tenant's queue, not ahead of other tenants."""
        flow = self._flow(sequence)
        if not flow.waiting:
            others = [
                other.served for other in self._flows.values() if other.waiting and other.priority == flow.priority
            ]
            flow.served = max(flow.served, min(others, default=flow.served))
        flow.waiting.appendleft(sequence)
        flow.num_running -= 1
        self._num_waiting += 1

    def head(self) -> Sequence | None:
        """The next one."""
        flows = [flow for flow in self._flows.values() if flow.waiting]
        return min(flows, key=lambda flow: flow.turn).waiting[0] if flows else None

    def begin(self, sequence: Sequence) -> None:
        """The head runs from now on."""
        flow = self._flow(sequence)
        begun = flow.waiting.popleft()
        assert begun is sequence
        self._num_waiting -= 1
        flow.num_running += 1
        self._served_last[flow.priority] = max(flow.served, self._served_last.get(flow.priority, 0.0))

    def charge(self, sequence: Sequence, cost: float) -> None:
        """Its tenant was served tokens of this cost."""
        flow = self._flow(sequence)
        flow.served += cost / flow.weight

    def end(self, sequence: Sequence) -> None:
        """A running one goes."""
        self._flow(sequence).num_running -= 1
        self._forget_if_idle()

    def remove(self, sequence: Sequence) -> None:
        """A waiting one goes."""
        self._flow(sequence).waiting.remove(sequence)
        self._num_waiting -= 1
        self._forget_if_idle()

    def num_places(self, sequence: Sequence) -> float:
        """How many sequences of its tenant run, for a weight of 1."""
        flow = self._flow(sequence)
        return flow.num_running / flow.weight

    def num_waiting_with(self, sequence: Sequence) -> int:
        """How many of its tenant wait."""
        return len(self._flow(sequence).waiting)

    def has_claim(self, waiting: Sequence, running: Sequence, num_given: int = 0) -> bool:
        """Whether `waiting` may have the place of `running`: by its priority, or as its tenant would have fewer places
        for its weight even then, the `num_given` included that it is about to get."""
        if waiting.claim.priority != running.claim.priority:
            return waiting.claim.priority > running.claim.priority
        flow = self._flow(waiting)
        return self.num_places(running) > (flow.num_running + num_given + 1) / flow.weight

    def _flow(self, sequence: Sequence) -> _Flow:
        return self._flows[sequence.claim.priority, sequence.claim.tenant]

    def _forget_if_idle(self) -> None:
        """Where nobody waits or runs, nobody was short of anything."""
        if not self._num_waiting and not any(flow.num_running for flow in self._flows.values()):
            self._flows.clear()
            self._served_last.clear()
