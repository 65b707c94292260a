"""What a run cost and what it gave: the figures by which policies are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from service.autoscaling.simulator.fleet import FleetConfig
from service.autoscaling.simulator.outcome import Outcome
from service.autoscaling.simulator.sequence import SimulatedSequence, meets


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`replica_seconds` counts replicas that start, serve or drain; `cost` adds `replica_s_per_miss` for each request
    missed: too late, too slow, cut, or turned away. `ttft_*` are of all that were served, their own prefill
    included."""

    slo_attainment: float
    replica_seconds: float
    cost: float
    ttft_p50_s: float
    ttft_p99_s: float
    scale_events: int
    num_requests: int
    num_missed: int
    num_cut: int
    num_refused: int
    num_turned_away: int


def summarise(outcome: Outcome, config: FleetConfig, replica_s_per_miss: float, warmup_s: float = 180.0) -> Summary:
    """Count from `warmup_s` (or from the start of shorter traces) to the last arrival; later ends of requests count."""
    end_s = outcome.workload.duration_s
    start_s = warmup_s if end_s > 2 * warmup_s else 0.0
    counted = [s for s in outcome.finished if s.request.arrival_at >= start_s]
    samples = [s for s in outcome.samples if start_s < s.at <= end_s]
    num_turned_away = sum(request.arrival_at >= start_s for request in outcome.turned_away)
    num_missed = (
        outcome.num_cut + num_turned_away + sum(not meets(s, config.slo, config.cost, config.limits) for s in counted)
    )
    num_requests = len(counted) + outcome.num_cut + num_turned_away
    replica_seconds = float(sum(s.num_replicas for s in samples))
    p50, p99 = np.percentile(list(_ttfts(counted)) or [0.0], [50, 99])
    return Summary(
        slo_attainment=1.0 - num_missed / max(1, num_requests),
        replica_seconds=replica_seconds,
        cost=replica_seconds + replica_s_per_miss * num_missed,
        ttft_p50_s=float(p50),
        ttft_p99_s=float(p99),
        scale_events=sum(a.desired != b.desired for a, b in pairwise(samples)),
        num_requests=num_requests,
        num_missed=num_missed,
        num_cut=outcome.num_cut,
        num_refused=outcome.num_refused,
        num_turned_away=num_turned_away,
    )


def _ttfts(sequences: list[SimulatedSequence]) -> Iterator[float]:
    for sequence in sequences:
        assert sequence.first_token_at is not None
        yield sequence.first_token_at - sequence.request.arrival_at
