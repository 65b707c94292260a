"""Is this run about the server, or about the tester? Pure.

A run is invalid when
1. the tester was late: p99 of lateness above 5 % of the median TTFT and above `limits.accepted_lateness_s` (by
   default what the operating system's timers alone may cost);
2. a worker's CPU was saturated: it used more than `MAX_CPU_RATIO` of a core in more than 5 % of the half seconds;
3. requests were dropped because too many were in flight.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadtest.measures import known, quantile
from loadtest.records import Outcome, Record
from loadtest.results import Latencies, Validity

LATENESS_SHARE = 0.05
MAX_CPU_RATIO = 0.9


def judge(
    records: Sequence[Record],
    latency: Latencies,
    cpu_ratios: Sequence[Sequence[float]],
    *,
    accepted_lateness_s: float,
    is_partial: bool,
) -> Validity:
    """`cpu_ratios[worker]`: its share of a core in each half second."""
    median = latency.ttft_s.p50
    limit = max(accepted_lateness_s, LATENESS_SHARE * median.value if median else 0.0)
    late = quantile(known(record.lateness_s for record in records), 0.99)
    reasons: list[str] = []
    if late is not None and late > limit:
        reasons.append(
            f"The tester was late: 1 % of requests went out more than {late * 1e3:.1f} ms after they were due"
            f" (limit {limit * 1e3:.1f} ms). Use more workers, a lower rate or another machine."
        )
    for worker, ratios in enumerate(cpu_ratios):
        busy = cpu_p95(ratios)
        if busy is not None and busy > MAX_CPU_RATIO:
            reasons.append(
                f"Worker {worker}'s CPU was saturated ({busy:.0%} of a core): its timestamps are its own queue."
                " Use more workers or a lower rate."
            )
    if dropped := sum(record.outcome is Outcome.DROPPED for record in records):
        reasons.append(f"{dropped} requests were dropped: limits.max_in_flight was reached.")
    return Validity(is_valid=not reasons, is_partial=is_partial, reasons=reasons, lateness_limit_s=limit)


def cpu_p95(ratios: Sequence[float]) -> float | None:
    """None when the run was too short to measure."""
    return quantile(known(ratios), 0.95)
