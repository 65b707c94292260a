"""How a server is, as it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HealthState(StrEnum):
    LOADING = "loading"  # nothing is served yet
    READY = "ready"
    OVERLOADED = "overloaded"  # serving, and refusing what would not be begun in time: new requests may come
    DRAINING = "draining"  # finishing what it has: new requests should go elsewhere
    DEAD = "dead"  # the engine has failed, or its heartbeat has stopped: busy is alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`wait_s`: until a request that comes now would be begun."""

    state: HealthState
    reason: str
    num_waiting: int = 0
    num_running: int = 0
    wait_s: float = 0.0
    heartbeat_age_s: float = 0.0

    @property
    def alive(self) -> bool:
        return self.state is not HealthState.DEAD

    @property
    def ready(self) -> bool:
        return self.state in (HealthState.READY, HealthState.OVERLOADED)


def state_of(failure: str | None, refusal: str | None, *, has_started: bool, is_overloaded: bool) -> HealthState:
    """Of an engine that has failed, or refuses everything, for a reason."""
    if failure is not None:
        return HealthState.DEAD
    if refusal is not None:
        return HealthState.DRAINING if has_started else HealthState.LOADING
    return HealthState.OVERLOADED if is_overloaded else HealthState.READY
