"""What the fleet has cost, and what a static one of its largest size would have."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.autoscaling.ledger import LONGEST_PAUSE_S


@dataclass(frozen=True, slots=True)
class CostMeter:
    """Sums since the fleet was first watched: all of them only grow. JSON: plain numbers."""

    at: float | None = None
    watched_s: float = 0.0
    replica_s: float = 0.0
    peak: int = 0
    num_up: int = 0  # decisions that asked for more replicas than the one before
    num_down: int = 0
    desired: int | None = None

    def observe(self, at: float, current: int, desired: int) -> CostMeter:
        """One decision on: `current` replicas, ready or starting, at Unix time `at`."""
        elapsed = at - self.at if self.at is not None and math.isfinite(at) else 0.0
        elapsed = elapsed if 0.0 < elapsed <= LONGEST_PAUSE_S else 0.0
        before = desired if self.desired is None else self.desired
        return CostMeter(
            at=at if math.isfinite(at) else self.at,
            watched_s=self.watched_s + elapsed,
            replica_s=self.replica_s + elapsed * current,
            peak=max(self.peak, current),
            num_up=self.num_up + (desired > before),
            num_down=self.num_down + (desired < before),
            desired=desired,
        )

    @property
    def saved_replica_s(self) -> float:
        """Against a fleet that always had as many replicas as this one at its largest."""
        return self.peak * self.watched_s - self.replica_s
