"""From everything a run left behind to its `RunResult`. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loadtest import measures, summary
from loadtest.kinds import Closed, Trace
from loadtest.reconcile import queue_time, reconcile
from loadtest.records import Outcome, Record
from loadtest.results import Decision, RunResult, ScheduleInfo, TargetInfo, Tester, Verification
from loadtest.schedule import Schedule
from loadtest.scrape import Snapshot
from loadtest.spec import Scenario
from loadtest.target import Target
from loadtest.validity import cpu_p95, judge
from loadtest.verdict import verdict
from loadtest.workers import Harvest

_DECISION_TIMES = ("at", "time", "timestamp", "at_unix_s", "decided_at")
_DECISION_REPLICAS = ("desired_replicas", "desired", "target_replicas", "replicas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """`before` and `after`: the server's counters around the load. `started`: wall clock of second 0."""

    scenario: Scenario
    target: Target
    schedule: Schedule
    started: datetime
    harvest: Harvest
    snapshots: Sequence[Snapshot]
    before: Snapshot | None
    after: Snapshot | None
    verification: Verification | None
    decisions: Sequence[Mapping[str, Any]]
    machine: str
    command: str


def assemble(evidence: Evidence) -> RunResult:
    """Measure what was recorded; warm-up is left out of everything but the timeline and the reconciliation."""
    scenario, harvest = evidence.scenario, evidence.harvest
    everything = harvest.records
    records = [record for record in everything if record.intended_s >= scenario.warmup_s]
    planned = len(evidence.schedule.requests)
    is_partial = len(everything) < planned or any(record.outcome is Outcome.UNFINISHED for record in everything)
    # What a run that was stopped was asked for is what there was time for.
    schedule_end_s = None if is_partial else _schedule_end_s(scenario, evidence.schedule.starts_s())
    latency = measures.latencies(records, harvest.gaps)
    validity = judge(
        records,
        latency,
        harvest.cpu_ratios,
        accepted_lateness_s=scenario.limits.accepted_lateness_s,
        is_partial=is_partial,
    )
    slo = scenario.slo
    goodput = summary.goodput(records, slo, scenario.warmup_s, schedule_end_s) if slo else None
    counts = summary.count(records, planned - (len(everything) - len(records)))
    rates = summary.rates(records, scenario.warmup_s, schedule_end_s)
    tenants = summary.tenants(records, slo)
    return RunResult(
        verdict=verdict(counts, rates, latency, goodput, validity, is_open_loop=scenario.is_open_loop),
        validity=validity,
        counts=counts,
        rates=rates,
        latency=latency,
        goodput=goodput,
        errors=summary.errors(records),
        tenants=tenants,
        fairness_jain=measures.jain([t.service_ratio for t in tenants if t.service_ratio is not None]),
        retries=summary.retries(records),
        cdf=_cdfs(records),
        scatter=summary.scatter(records),
        **_circumstances(evidence),
    )


def _circumstances(evidence: Evidence) -> dict[str, Any]:
    """The parts of the result that are about the run as a whole."""
    scenario, harvest = evidence.scenario, evidence.harvest
    return {
        "name": scenario.name,
        "reason": scenario.reason,
        "started_at": evidence.started.isoformat(timespec="seconds"),
        "target": _target(evidence),
        "scenario": scenario.model_dump(mode="json"),
        "schedule": _schedule(evidence, evidence.schedule.starts_s()),
        "queue_time": queue_time(evidence.before, evidence.after),
        "reconciliation": reconcile(harvest.records, evidence.before, evidence.after),
        "verification": evidence.verification,
        "tester": Tester(
            cpu_ratio_p95=[cpu_p95(ratios) for ratios in harvest.cpu_ratios],
            peak_memory_bytes=harvest.peak_memory_bytes,
            prompt_lengths_exact=evidence.target.vocabulary.is_exact,
            machine=evidence.machine,
            command=evidence.command,
        ),
        "intervals": summary.intervals(harvest.records, evidence.snapshots),
        "decisions": decisions(evidence.decisions, evidence.started, summary.end_s(harvest.records)),
    }


def _schedule_end_s(scenario: Scenario, starts_s: Sequence[float]) -> float | None:
    """Length of the stretch over which requests were due; a trace ends one mean gap after its last one."""
    match scenario.arrivals:
        case Closed():
            return None
        case Trace():
            return starts_s[-1] * len(starts_s) / max(len(starts_s) - 1, 1) or 1.0
        case timed:
            return timed.duration_s


def _target(evidence: Evidence) -> TargetInfo:
    target = evidence.target
    return TargetInfo(url=target.url, model=target.model, api=evidence.scenario.api, server=target.server)


def _schedule(evidence: Evidence, starts_s: Sequence[float]) -> ScheduleInfo:
    return ScheduleInfo(
        sha256=evidence.schedule.sha256,
        loop="open" if evidence.scenario.is_open_loop else "closed",
        seed=evidence.scenario.seed,
        num_requests=len(evidence.schedule.requests),
        duration_s=starts_s[-1] if starts_s else 0.0,
        gap_cv=measures.gap_cv(starts_s),
        num_workers=len(evidence.harvest.cpu_ratios),
    )


def _cdfs(records: Sequence[Record]) -> dict[str, list[tuple[float, float]]]:
    ok = [record for record in records if record.outcome is Outcome.OK]
    return {
        "ttft_s": summary.cdf([record.ttft_s for record in ok]),
        "ttft_from_send_s": summary.cdf([record.ttft_from_send_s for record in ok]),
        "tpot_s": summary.cdf([record.tpot_s for record in ok]),
        "e2e_s": summary.cdf([record.e2e_s for record in ok]),
    }


def decisions(entries: Sequence[Mapping[str, Any]], started: datetime, end_s: float) -> list[Decision]:
    """The server's scaling decisions that fall into the run. Times may be Unix seconds or ISO 8601; entries without a
    readable time are left out."""
    found: list[Decision] = []
    for entry in entries:
        at = _instant(next((entry[key] for key in _DECISION_TIMES if key in entry), None))
        if at is None:
            continue
        at_s = (at - started).total_seconds()
        replicas = next((entry[key] for key in _DECISION_REPLICAS if isinstance(entry.get(key), int | float)), None)
        if 0 <= at_s <= end_s:
            found.append(Decision(at_s=at_s, replicas=replicas, reason=str(entry.get("reason", ""))))
    return sorted(found, key=lambda decision: decision.at_s)


def _instant(value: object) -> datetime | None:
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    try:
        return datetime.fromisoformat(str(value)).astimezone(UTC)
    except ValueError:
        return None
