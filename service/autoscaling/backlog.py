"""How many replicas a queue that is already too long deserves.

Every second that the queue stays too long costs the requests that arrive in it. A fleet of N drains it by a known
instant, as replicas join when they are ready: so each N has a price, its rent until then beyond what the demand needs
anyway plus the misses until then, and the cheapest wins. Replicas that would arrive after the queue is gone only cost,
so that nothing is started for what will drain by itself, and nothing under way is dropped while it still helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_NEVER_S = 3600.0  # a queue that does not drain is priced as if it did after an hour


@dataclass(frozen=True, slots=True)
class Backlog:
    """`queued` replica-seconds of work wait, `work` replicas arrive, `arrivals` requests/s with it. Up to `slack_s` of
    queue per replica is in time."""

    queued: float
    work: float
    arrivals: float
    slack_s: float

    def is_late(self, num_ready: int) -> bool:
        return self.queued > self.slack_s * max(0.5, num_ready)

    def drained_in_s(self, joins_s: Sequence[float]) -> float:
        """Seconds until the queue is in time again, when replica i joins after `joins_s[i]` (ascending)."""
        queue, at = self.queued, 0.0
        for count, joins_at in enumerate(joins_s):
            span_s = joins_at - at
            if span_s > 0.0:
                excess = queue - self.slack_s * max(0.5, count)
                rate = count - self.work
                if excess <= rate * span_s:
                    return at + max(0.0, excess / rate)
                queue = max(0.0, queue - rate * span_s)
                at = joins_at
        count = len(joins_s)
        excess, rate = queue - self.slack_s * max(0.5, count), count - self.work
        if excess <= 0.0:
            return at
        return min(_NEVER_S, at + excess / rate) if rate > 0.0 else _NEVER_S

    def cheapest(self, joins_s: Sequence[float], *, base: int, per_miss: float) -> int:
        """The N that costs least, of the replicas that may join at `joins_s` (ascending, ready ones at 0), at least
        `base`, which the demand needs anyway."""
        best, best_price = base, float("inf")
        for n in range(max(1, base), len(joins_s) + 1):
            drained_s = self.drained_in_s(joins_s[:n])
            rent = (n - base) * max(drained_s, joins_s[n - 1])
            price = rent + per_miss * self.arrivals * drained_s
            if price < best_price:
                best, best_price = n, price
        return best
