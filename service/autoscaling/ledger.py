"""What happened since the last snapshot: differences of counters, with everything doubtful left out.

A report that is missing, malformed or older than a few seconds is unknown. Its replica's work is not: counters only
grow, so that the next good report brings it. A pause longer than a minute, or a clock that does not advance, teaches
nothing: the books are opened anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from service.autoscaling.signals import Replica, ReplicaState, ReplicaStats, Snapshot, StepTotals

STALE_S = 3.0  # age from which a report is unknown
LONGEST_PAUSE_S = 60.0


class Counters(NamedTuple):
    """The growing numbers of one replica."""

    num_requests: float = 0.0
    num_prompt_tokens: float = 0.0
    num_hit_tokens: float = 0.0
    num_finished: float = 0.0
    num_output_tokens: float = 0.0
    num_steps: float = 0.0
    num_sequences: float = 0.0
    num_prefill_tokens: float = 0.0
    num_context_tokens: float = 0.0
    duration_s: float = 0.0

    @classmethod
    def of(cls, stats: ReplicaStats) -> Counters:
        steps = stats.steps
        return cls(
            stats.num_requests,
            stats.num_prompt_tokens,
            stats.num_hit_tokens,
            stats.num_finished,
            stats.num_output_tokens,
            steps.num_steps,
            steps.num_sequences,
            steps.num_prefill_tokens,
            steps.num_context_tokens,
            steps.duration_s,
        )

    def since(self, before: Counters) -> Counters:
        """The growth; of a replica that began anew under its old name, all it has."""
        if self.num_requests < before.num_requests or self.num_steps < before.num_steps:
            return self
        return Counters(*(max(0.0, now - then) for now, then in zip(self, before, strict=True)))

    @property
    def steps(self) -> StepTotals:
        return StepTotals(
            num_steps=self.num_steps,
            num_sequences=self.num_sequences,
            num_prefill_tokens=self.num_prefill_tokens,
            num_context_tokens=self.num_context_tokens,
            duration_s=self.duration_s,
        )


@dataclass(frozen=True, slots=True)
class Ledger:
    """The counters as last read, and what was held then."""

    at: float | None = None
    counters: Mapping[str, Counters] | None = None
    num_held: float = 0.0
    num_held_prompt_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Observed:
    """The present state, and the growth over the last `dt` seconds: None when there is nothing to compare with."""

    ready: tuple[Replica, ...]
    starting: tuple[Replica, ...]
    num_unknown: int  # sources that say nothing usable
    num_running: float
    num_prefill_ahead: float  # prompt tokens, held ones included, that delay someone
    num_held: float
    dt: float | None
    num_requests: float
    num_prompt_tokens: float
    num_hit_tokens: float
    num_finished: float
    num_output_tokens: float
    steps: tuple[StepTotals, ...]


def read(snapshot: Snapshot, ledger: Ledger) -> tuple[Observed, Ledger]:
    """Never raises, whatever the numbers in `snapshot`."""
    at = snapshot.at if math.isfinite(snapshot.at) else None
    usable = {r.replica_id: r.stats for r in snapshot.replicas if _is_usable(r.stats)}
    before = {} if ledger.counters is None else ledger.counters
    after = {r.replica_id: before.get(r.replica_id, Counters()) for r in snapshot.replicas}
    after |= {replica_id: Counters.of(stats) for replica_id, stats in usable.items() if stats is not None}
    growth = [after[replica_id].since(before.get(replica_id, Counters())) for replica_id in after]
    total = [sum(column) for column in zip(*growth, strict=True)] or [0.0] * len(Counters._fields)

    ingress = snapshot.ingress
    is_ingress_known = (
        ingress is not None
        and _is_fresh(ingress.at, at)
        and _is_sane((ingress.num_held, ingress.num_held_prompt_tokens))
    )
    held, held_tokens = ledger.num_held, ledger.num_held_prompt_tokens
    if ingress is not None and is_ingress_known:
        held, held_tokens = ingress.num_held, ingress.num_held_prompt_tokens
    ready = tuple(r for r in snapshot.replicas if r.state is ReplicaState.READY)
    known = [usable[r.replica_id] for r in ready if r.replica_id in usable]
    num_fresh = sum(stats is not None and _is_fresh(stats.at, at) for stats in known)
    observed = Observed(
        ready=ready,
        starting=tuple(r for r in snapshot.replicas if r.state is ReplicaState.STARTING),
        num_unknown=len(ready) - num_fresh + (not is_ingress_known) + (at is None),
        num_running=sum(stats.num_running for stats in known if stats is not None),
        # Where nothing waits, a long prompt delays only itself, and its own time is not counted against it.
        num_prefill_ahead=held_tokens
        + sum(stats.num_prefill_left for stats in known if stats is not None and stats.num_waiting > 0),
        num_held=held,
        dt=_elapsed(at, ledger),
        num_requests=max(0.0, total[0] + held - ledger.num_held),
        num_prompt_tokens=max(0.0, total[1] + held_tokens - ledger.num_held_prompt_tokens),
        num_hit_tokens=total[2],
        num_finished=total[3],
        num_output_tokens=total[4],
        steps=tuple(counters.steps for counters in growth if counters.num_steps > 0),
    )
    return observed, Ledger(at if at is not None else ledger.at, after, held, held_tokens)


def _elapsed(at: float | None, ledger: Ledger) -> float | None:
    if at is None or ledger.at is None or ledger.counters is None:
        return None
    elapsed = at - ledger.at
    return elapsed if 0.0 < elapsed <= LONGEST_PAUSE_S else None


def _is_fresh(read_at: float, at: float | None) -> bool:
    return at is not None and abs(at - read_at) <= STALE_S


def _is_usable(stats: ReplicaStats | None) -> bool:
    if stats is None:
        return False
    return _is_sane((stats.num_running, stats.num_waiting, stats.num_prefill_left, stats.kv_usage, *Counters.of(stats)))


def _is_sane(values: tuple[float, ...]) -> bool:
    return math.isfinite(sum(values)) and min(values) >= 0.0
