"""Tables of the result that are counts, groups and series of records. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from loadtest.measures import counts_for_slo, is_good, known, quantile, share_interval
from loadtest.records import Outcome, Record
from loadtest.results import Counts, ErrorGroup, Goodput, Interval, Rates, Retries, TenantResult
from loadtest.scrape import Snapshot
from loadtest.spec import Slo

MAX_INTERVALS = 300
MAX_SCATTER = 1500
CDF_LEVELS = (*(level / 100 for level in range(100)), 0.995, 0.999, 1.0)
MAX_GROUPS = 50


def count(records: Sequence[Record], planned: int) -> Counts:
    """`planned` may exceed the records: a run that was stopped has not sent all."""
    outcomes = [record.outcome for record in records]
    never_due = planned - len(records)
    return Counts(
        planned=planned,
        sent=sum(record.sent_s is not None for record in records),
        ok=outcomes.count(Outcome.OK),
        failed=sum(outcome.is_failure for outcome in outcomes),
        disconnected=outcomes.count(Outcome.DISCONNECTED),
        skipped=outcomes.count(Outcome.SKIPPED),
        unfinished=outcomes.count(Outcome.UNFINISHED) + never_due,
    )


def end_s(records: Sequence[Record]) -> float:
    """When the last answer was complete (or the last request due, if later)."""
    return max((record.end_s or record.intended_s for record in records), default=0.0)


def rates(records: Sequence[Record], start_s: float, schedule_end_s: float | None) -> Rates:
    """Per second between `start_s` (end of warm-up) and the schedule's end for what was asked and sent, and the last
    answer for what was complete. `schedule_end_s` None: closed loop."""
    ok = [record for record in records if record.outcome is Outcome.OK]
    until_end = max(end_s(records) - start_s, 1e-9)
    window = until_end if schedule_end_s is None else max(schedule_end_s - start_s, 1e-9)
    outputs, prompts = known(record.output_tokens for record in ok), known(record.prompt_tokens for record in ok)
    events = sum(record.num_events for record in ok if record.output_tokens is not None)
    return Rates(
        asked_rps=None if schedule_end_s is None else len(records) / window,
        sent_rps=sum(record.sent_s is not None for record in records) / window,
        ok_rps=len(ok) / until_end,
        prompt_tokens_per_s=float(prompts.sum()) / until_end if len(prompts) else None,
        output_tokens_per_s=float(outputs.sum()) / until_end if len(outputs) else None,
        tokens_per_event=float(outputs.sum()) / events if events else None,
    )


def goodput(records: Sequence[Record], slo: Slo, start_s: float, schedule_end_s: float | None) -> Goodput:
    """Good requests per second of schedule (until the last answer in a closed loop), and whether the SLO held."""
    good = [is_good(record, slo) for record in records if counts_for_slo(record)]
    low, high = share_interval(good)
    until = end_s(records) if schedule_end_s is None else schedule_end_s
    share = sum(good) / len(good) if good else None
    return Goodput(
        slo=slo.model_dump(exclude_none=True),
        met=sum(good),
        of=len(good),
        share=share,
        share_low=low if good else None,
        share_high=high if good else None,
        goodput_rps=sum(good) / max(until - start_s, 1e-9),
        is_held=share is not None and share >= slo.share,
    )


def errors(records: Sequence[Record]) -> list[ErrorGroup]:
    """Failures by outcome, status and code, most frequent first."""
    groups: defaultdict[tuple[str, int | None, str | None], list[Record]] = defaultdict(list)
    for record in records:
        if record.outcome.is_failure:
            groups[record.outcome.value, record.status, record.code].append(record)
    found = [
        ErrorGroup(outcome=outcome, status=status, code=code, count=len(group), example=group[0].message)
        for (outcome, status, code), group in groups.items()
    ]
    return sorted(found, key=lambda group: -group.count)[:MAX_GROUPS]


def tenants(records: Sequence[Record], slo: Slo | None) -> list[TenantResult]:
    """One row per tenant, in order of name."""
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record.tenant].append(record)
    return [_tenant(name, group, slo) for name, group in sorted(groups.items())]


def _tenant(name: str, group: list[Record], slo: Slo | None) -> TenantResult:
    counted = [record for record in group if counts_for_slo(record)]
    ttfts = known(record.ttft_s for record in group if record.outcome is Outcome.OK)
    return TenantResult(
        name=name,
        sent=sum(record.sent_s is not None for record in group),
        ok=len(ttfts),
        service_ratio=sum(is_good(record, slo) for record in counted) / len(counted) if counted else None,
        ttft_p50_s=quantile(ttfts, 0.5),
        ttft_p99_s=quantile(ttfts, 0.99),
        output_tokens=sum(record.output_tokens or record.num_events for record in group),
    )


def retries(records: Sequence[Record]) -> Retries:
    """How refusals with Retry-After went on."""
    advised = [record for record in records if record.retry_after_s is not None]
    again = [record for record in advised if record.attempts > 1]
    return Retries(
        advised=len(advised),
        advice_p50_s=quantile(known(record.retry_after_s for record in advised), 0.5),
        retried=len(again),
        obeyed=sum((record.retry_slack_s or 0.0) >= 0 for record in again),
        admitted=sum(record.outcome is Outcome.OK for record in again),
    )


def cdf(values: Sequence[float | None]) -> list[tuple[float, float]]:
    """(value, share at or below it) at fixed levels, dense at the end that matters."""
    array = known(values)
    if not len(array):
        return []
    return [(float(value), level) for value, level in zip(np.quantile(array, CDF_LEVELS), CDF_LEVELS, strict=True)]


def scatter(records: Sequence[Record], seed: int = 0) -> list[tuple[float, float]]:
    """(prompt tokens, TTFT) of complete requests: all, or a random sample of them with the slowest always in it."""
    points = [
        (float(tokens), record.ttft_s)
        for record in records
        if record.outcome is Outcome.OK
        and record.ttft_s is not None
        and (tokens := record.prompt_tokens or record.planned_prompt_tokens) is not None
    ]
    if len(points) <= MAX_SCATTER:
        return points
    points.sort(key=lambda point: -point[1])
    slowest = MAX_SCATTER // 10
    chosen = np.random.default_rng(seed).choice(len(points) - slowest, MAX_SCATTER - slowest, replace=False)
    return points[:slowest] + [points[slowest + index] for index in chosen]


def intervals(records: Sequence[Record], snapshots: Sequence[Snapshot]) -> list[Interval]:
    """The run in at most `MAX_INTERVALS` equal stretches of at least a second."""
    end = end_s(records)
    width = max(1.0, end / MAX_INTERVALS)
    stretches = [_Stretch() for _ in range(int(end / width) + 1)]

    def at(instant: float) -> _Stretch:
        return stretches[min(max(int(instant / width), 0), len(stretches) - 1)]

    for record in records:
        at(record.intended_s).due.append(record)
        if record.sent_s is not None:
            at(record.sent_s).sent += 1
        if record.end_s is not None:
            at(record.end_s).ended.append(record)
    for snapshot in snapshots:
        at(snapshot.at_s).snapshot = snapshot
    in_flight, series = 0, []
    for number, stretch in enumerate(stretches):
        in_flight += stretch.sent - len(stretch.ended)
        series.append(stretch.interval(number * width, in_flight))
    return series


class _Stretch:
    """What happened between two instants."""

    def __init__(self) -> None:
        self.due: list[Record] = []
        self.ended: list[Record] = []
        self.sent = 0
        self.snapshot: Snapshot | None = None

    def interval(self, at_s: float, in_flight: int) -> Interval:
        done = [record for record in self.due if record.outcome is Outcome.OK]
        ttfts = known(record.ttft_s for record in done)
        return Interval(
            at_s=at_s,
            due=len(self.due),
            sent=self.sent,
            ok=sum(record.outcome is Outcome.OK for record in self.ended),
            failed=sum(record.outcome.is_failure for record in self.ended),
            in_flight=in_flight,
            ttft_p50_s=quantile(ttfts, 0.5),
            ttft_p99_s=quantile(ttfts, 0.99),
            tpot_p50_s=quantile(known(record.tpot_s for record in done), 0.5),
            running=self.snapshot.running if self.snapshot else None,
            waiting=self.snapshot.waiting if self.snapshot else None,
            replicas=self.snapshot.replicas if self.snapshot else None,
        )
