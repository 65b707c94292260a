"""What crosses the wall between Serve's controller and the brain: what the policy saw, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What Serve knew at instant `at` (Unix time).

    `numbers` are the last reports of the running replicas, by replica id; `num_held` requests wait for a replica, None
    where nobody can tell. Of the replicas that are asked for and not yet running, `starting_since` has the instants
    they were asked for; `start_times_s` are the cold starts that ended since the last observation. `num_fallbacks` is
    1 where the policy has had to do without an answer.
    """

    at: float
    target: int
    running: tuple[str, ...]
    numbers: Mapping[str, Mapping[str, float]]
    num_held: float | None
    starting_since: tuple[float, ...] = ()
    start_times_s: tuple[float, ...] = ()
    num_fallbacks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How many replicas there should be, as of `at`, when there were to be `target`.

    `batch` sequences fill a replica; 0 while that is unknown.
    """

    at: float
    target: int
    desired: int
    batch: float


@dataclass(slots=True)
class Starts:
    """Watches replicas come: how long those have been awaited that are not there yet, and how long the others took."""

    _running: frozenset[str] | None = None
    _since: list[float] = field(default_factory=list)
    _took_s: list[float] = field(default_factory=list)

    def watch(self, at: float, target: int, running: frozenset[str], last_scale_up_at: float | None) -> None:
        """Take in what is at instant `at`. At zero replicas Serve starts one without asking the policy, which learns
        of it from `last_scale_up_at`."""
        if self._running is not None:
            for _ in running - self._running:
                if self._since:
                    self._took_s.append(at - self._since.pop(0))
                elif not self._running and last_scale_up_at is not None:
                    self._took_s.append(max(0.0, at - last_scale_up_at))
        num_starting = max(0, target - len(running))
        del self._since[num_starting:]  # the youngest are those that were called off
        self._since += [at] * (num_starting - len(self._since))
        self._running = running

    @property
    def since(self) -> tuple[float, ...]:
        return tuple(self._since)

    def take_start_times(self) -> tuple[float, ...]:
        """Cold starts (seconds) that ended since the last call."""
        taken, self._took_s = tuple(self._took_s), []
        return taken
