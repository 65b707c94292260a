"""What the policy is told: one snapshot of the fleet, about once a second.

Unknown is None, never 0. Counters only grow, over the life of a replica, so that a lost report loses nothing: the next
one brings it. Every source carries the instant it was read at (`at`, seconds of the same clock as `Snapshot.at`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from service.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What bounds a step of one replica's engine, and its cache. Raises ConfigError, naming the limit."""

    max_num_seqs: int = 48
    max_num_batched_tokens: int = 512
    kv_tokens: int = 262_144
    block_size: int = 16

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError("max_num_batched_tokens must be at least max_num_seqs.")
        if self.kv_tokens < self.block_size:
            raise ConfigError("kv_tokens must be at least block_size.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """Sums over all steps so far: enough to fit the cost of a step, and they add up over replicas.

    `num_sequences`: sequences per step; `num_prefill_tokens`: new tokens beyond the first of each sequence;
    `num_context_tokens`: tokens in the cache after the step that its sequences attend to.
    """

    num_steps: float = 0
    num_sequences: float = 0
    num_prefill_tokens: float = 0
    num_context_tokens: float = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """What one replica says of itself. The state now, then counters since its start.

    `num_prefill_left`: prompt tokens that wait to be computed. `num_output_tokens` and `num_slo_misses` are of finished
    requests; `num_hit_tokens` were found in the prefix cache. `num_requests` and `num_prompt_tokens` are what was asked
    for, refused or not; `wait_s` is how long a request that came now would wait.
    """

    at: float
    num_running: int
    num_waiting: int
    num_prefill_left: int
    kv_usage: float
    num_requests: int
    num_prompt_tokens: int
    num_hit_tokens: int
    num_finished: int
    num_output_tokens: int
    num_slo_misses: int
    steps: StepTotals
    wait_s: float = 0.0

    @classmethod
    def idle(cls, at: float) -> ReplicaStats:
        """Of a replica that has done nothing yet."""
        return cls(
            at=at,
            num_running=0,
            num_waiting=0,
            num_prefill_left=0,
            kv_usage=0.0,
            num_requests=0,
            num_prompt_tokens=0,
            num_hit_tokens=0,
            num_finished=0,
            num_output_tokens=0,
            num_slo_misses=0,
            steps=StepTotals(),
        )


class ReplicaState(StrEnum):
    STARTING = "starting"  # asked for; answers nothing yet
    READY = "ready"
    DRAINING = "draining"  # finishes what it has and gets nothing new


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One replica as the fleet sees it; `since` is when it was asked for. `stats` is its last report, if any."""

    replica_id: str
    state: ReplicaState
    since: float
    stats: ReplicaStats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressStats:
    """Requests that wait before any replica: at zero replicas, or while all are full."""

    at: float
    num_held: int
    num_held_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The fleet at instant `at`. `ingress` is None where nothing can tell what is held.

    `start_times_s` are the latest measured cold starts (asked for → ready), oldest first.
    """

    at: float
    replicas: tuple[Replica, ...]
    ingress: IngressStats | None
    limits: EngineLimits
    start_times_s: tuple[float, ...] = ()
