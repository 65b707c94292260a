"""Snapshots for the policy: well formed, made by hand, and broken in every way."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import strategies as st

from service.autoscaling.signals import (
    EngineLimits,
    IngressStats,
    Replica,
    ReplicaState,
    ReplicaStats,
    Snapshot,
    StepTotals,
)

LIMITS = EngineLimits()


def stats(at: float, **values: float) -> ReplicaStats:
    """The report of an idle replica, but for what is given."""
    return replace(ReplicaStats.idle(at), **values)  # type: ignore[arg-type]


def ready(number: int, report: ReplicaStats | None) -> Replica:
    return Replica(replica_id=f"replica-{number}", state=ReplicaState.READY, since=0.0, stats=report)


def snapshot(at: float, *replicas: Replica, num_held: int = 0, num_held_prompt_tokens: int = 0) -> Snapshot:
    """With an ingress that is heard, and cold starts of 10 s."""
    ingress = IngressStats(at=at, num_held=num_held, num_held_prompt_tokens=num_held_prompt_tokens)
    return Snapshot(at=at, replicas=replicas, ingress=ingress, limits=LIMITS, start_times_s=(10.0,))


numbers = st.one_of(
    st.integers(-5, 10**6), st.floats(allow_nan=True, allow_infinity=True), st.just(math.nan), st.just(0)
)


@st.composite
def broken_stats(draw: st.DrawFn) -> ReplicaStats:
    """Any numbers anywhere."""
    names = ["at", "num_running", "num_waiting", "num_prefill_left", "kv_usage", "num_requests", "num_prompt_tokens"]
    names += ["num_hit_tokens", "num_finished", "num_output_tokens", "num_slo_misses"]
    steps = ["num_steps", "num_sequences", "num_prefill_tokens", "num_context_tokens", "duration_s"]
    totals = StepTotals(**{name: draw(numbers) for name in steps})
    return replace(stats(0.0), steps=totals, **{name: draw(numbers) for name in names})  # type: ignore[arg-type]


@st.composite
def broken_snapshots(draw: st.DrawFn) -> Snapshot:
    """Missing, stale, contradictory and nonsensical reports, clocks that jump."""
    replicas = [
        Replica(
            replica_id=f"replica-{draw(st.integers(0, 5))}",
            state=draw(st.sampled_from(ReplicaState)),
            since=draw(numbers),
            stats=draw(st.none() | broken_stats()),
        )
        for _ in range(draw(st.integers(0, 6)))
    ]
    ingress = IngressStats(at=draw(numbers), num_held=draw(numbers), num_held_prompt_tokens=draw(numbers))  # type: ignore[arg-type]
    return Snapshot(
        at=draw(numbers),
        replicas=tuple(replicas),
        ingress=draw(st.sampled_from([None, ingress])),
        limits=LIMITS,
        start_times_s=tuple(draw(st.lists(numbers, max_size=3))),
    )
