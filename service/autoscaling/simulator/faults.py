"""What goes wrong in a simulated fleet, and when (seconds of virtual time)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """`silent`: spans in which no statistics arrive. `stuck`: numbers of the replicas, in order of their start, that
    never get ready. `crashes`: (instant, which of the ready ones)."""

    silent: tuple[tuple[float, float], ...] = ()
    stuck: frozenset[int] = frozenset()
    crashes: tuple[tuple[float, int], ...] = ()

    def is_silent(self, at: float) -> bool:
        return any(start <= at < end for start, end in self.silent)

    def is_stuck(self, number: int) -> bool:
        return number in self.stuck

    def crashes_at(self, at: float) -> list[int]:
        """Crashes of the second that ends at `at`."""
        return [which for instant, which in self.crashes if at - 1.0 < instant <= at]
