"""Do both sides count the same? Server counters over the run against what the client saw. Pure.

A request that ended well is known exactly (its `usage`). One that was refused before the stream began cost nothing.
One that broke off in mid-stream may have cost the server more than the client saw: it widens the client's count to
an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from loadtest.records import Outcome, Record
from loadtest.results import QueueTime, Reconciled
from loadtest.scrape import Buckets, Snapshot

_NEVER_RAN = frozenset({Outcome.SKIPPED, Outcome.DROPPED, Outcome.CONNECT, Outcome.HTTP})


def reconcile(records: Sequence[Record], before: Snapshot | None, after: Snapshot | None) -> list[Reconciled]:
    """One row per quantity; empty when the server has no metrics."""
    if before is None or after is None:
        return []
    whole = [record for record in records if record.output_tokens is not None and record.prompt_tokens is not None]
    broken = [record for record in records if record.output_tokens is None and record.outcome not in _NEVER_RAN]
    prompts = sum(record.prompt_tokens or 0 for record in whole)
    outputs = sum(record.output_tokens or 0 for record in whole)
    return [
        _row("requests", len(whole), len(whole) + len(broken), _increase(before.requests, after.requests)),
        _row(
            "prompt_tokens",
            prompts,
            prompts + sum(_prompt_bound(whole, record) for record in broken),
            _increase(before.prompt_tokens, after.prompt_tokens),
        ),
        _row(
            "output_tokens",
            outputs + sum(record.num_events for record in broken),
            outputs + sum(max(record.planned_output_tokens, record.num_events) for record in broken),
            _increase(before.output_tokens, after.output_tokens),
        ),
    ]


def _row(what: str, low: float, high: float, server: float | None) -> Reconciled:
    agrees = None if server is None else low <= server <= high
    bound = high if math.isfinite(high) else None
    return Reconciled(what=what, client_low=low, client_high=bound, server=server, agrees=agrees)


def _increase(before: float | None, after: float | None) -> float | None:
    """A counter that does not exist before its first request counts from 0; one that fell was restarted: not known."""
    if after is None or (before is not None and after < before):
        return None
    return after - (before or 0.0)


def _prompt_bound(whole: Sequence[Record], broken: Record) -> float:
    """Most prompt tokens that a broken-off request can have cost: its plan (or, where its plan is not known or not
    exact, the longest prompt seen), by the largest ratio of counted to planned tokens among the whole ones."""
    ratios = [
        (record.prompt_tokens or 0) / record.planned_prompt_tokens for record in whole if record.planned_prompt_tokens
    ]
    longest = max((record.prompt_tokens or 0 for record in whole), default=0)
    if broken.planned_prompt_tokens is None:
        return float(longest) if longest else math.inf
    return broken.planned_prompt_tokens * max([1.0, *ratios])


def queue_time(before: Snapshot | None, after: Snapshot | None) -> QueueTime | None:
    """The server's own histogram of waiting time, over the run; None when it has none or it saw nothing."""
    if after is None or not after.queue_time_buckets or after.queue_time_sum_s is None:
        return None
    earlier = dict(before.queue_time_buckets) if before else {}
    buckets = tuple((bound, seen - earlier.get(bound, 0.0)) for bound, seen in after.queue_time_buckets)
    total = buckets[-1][1]
    if total <= 0:
        return None
    waited = after.queue_time_sum_s - ((before.queue_time_sum_s if before else None) or 0.0)
    return QueueTime(
        count=int(total),
        mean_s=waited / total,
        p50_s=histogram_quantile(buckets, 0.5),
        p99_s=histogram_quantile(buckets, 0.99),
    )


def histogram_quantile(buckets: Buckets, level: float) -> float | None:
    """As Prometheus does: linear within the bucket that holds the rank; None when that is the last, unbounded one."""
    rank = level * buckets[-1][1]
    below_bound, below_count = 0.0, 0.0
    for bound, seen in buckets:
        if seen >= rank:
            if math.isinf(bound):
                return None
            inside = seen - below_count
            return below_bound + (bound - below_bound) * ((rank - below_count) / inside if inside else 1.0)
        below_bound, below_count = bound, seen
    return None
