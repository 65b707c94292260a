"""The highest rate that holds an SLO: double (or halve) until it breaks, then bisect, with a statement of confidence.

Each rate is run until its answer is proven, that is until the 95 % interval of the share of good requests lies on
one side of what the SLO asks, or `MAX_REPEATS` runs with fresh seeds have not settled it; then the point estimate
decides and the step says so. Deciding is pure (`decide`, `next_rate`, `conclude`); `sweep` runs it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pydantic import Field

from loadtest.errors import ScenarioError
from loadtest.kinds import ConstantRate, Gamma, Poisson
from loadtest.measures import counts_for_slo, is_good, share_interval
from loadtest.records import Outcome, Record
from loadtest.results import Part, RunResult
from loadtest.spec import Scenario, Slo
from loadtest.worker import Progress

MAX_REPEATS = 3
SEARCHED = frozenset({"tolerance", "steps", "bounds"})  # reasons to stop that are the search's own


class Step(Part):
    """One rate."""

    rate_rps: float = Field(description="asked")
    is_held: bool = Field(description="the SLO held")
    is_proven: bool = Field(description="the 95 % interval of the share lies on that side of what the SLO asks")
    share: float | None = Field(description="good requests; null when the step was cut short as hopeless")
    share_low: float | None = Field(description="lower end of its interval")
    share_high: float | None = Field(description="upper end of its interval")
    num_requests: int = Field(description="requests counted")


class SweepResult(Part):
    verdict: str = Field(description="one line")
    slo: dict[str, float] = Field(description="limits and share")
    max_rate_rps: float | None = Field(description="highest rate that held; null when none did")
    proven_rps: float | None = Field(description="highest rate proven to hold")
    refuted_rps: float | None = Field(description="lowest rate proven to break it")
    stopped_because: str = Field(description="tolerance, steps, bounds, interrupted, or why a run was invalid")
    steps: list[Step]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Where and how finely to search. Stops when the bracket is within `tolerance` (0.1: 10 %) or after `max_steps`."""

    start_rps: float
    lowest_rps: float = 0.05
    highest_rps: float = 10_000.0
    tolerance: float = 0.1
    max_steps: int = 12


@dataclass(frozen=True, slots=True)
class Trial:
    """One run at a rate. `is_hopeless`: stopped because it could no longer hold."""

    result: RunResult
    records: list[Record]
    is_hopeless: bool


RunTrial = Callable[[Scenario], Awaitable[Trial]]


def at_rate(scenario: Scenario, rate_rps: float, seed: int) -> Scenario:
    """The scenario with this rate. Raises ScenarioError for arrivals that have no single rate."""
    if not isinstance(scenario.arrivals, ConstantRate | Poisson | Gamma):
        raise ScenarioError(f"A sweep needs constant, poisson or gamma arrivals, not {scenario.arrivals.kind}.")
    arrivals = scenario.arrivals.model_copy(update={"rate_rps": rate_rps})
    return scenario.model_copy(update={"arrivals": arrivals, "seed": seed})


async def sweep(
    scenario: Scenario, slo: Slo, bounds: Bounds, run: RunTrial, on_step: Callable[[Step], None]
) -> SweepResult:
    """Search; `on_step` hears of each rate as it is settled."""
    steps: list[Step] = []
    seed = scenario.seed
    while not isinstance(rate := next_rate(steps, bounds), str):
        good: list[bool] = []
        for _ in range(MAX_REPEATS):
            trial = await run(at_rate(scenario, rate, seed))
            seed += 1
            if stopped := _unusable(trial, rate):
                return conclude(steps, slo, stopped)
            step = _hopeless(rate, trial.records) if trial.is_hopeless else _judge(trial, rate, slo, good)
            if step.is_proven:
                break
        steps.append(step)
        on_step(step)
    return conclude(steps, slo, rate)


def _unusable(trial: Trial, rate: float) -> str:
    """Why this trial says nothing about the server, or ""."""
    validity = trial.result.validity
    if trial.is_hopeless:
        return ""
    if not validity.is_valid:
        return f"the run at {rate:.3g} req/s was invalid: {validity.reasons[0]}"
    return "interrupted" if validity.is_partial else ""


def _judge(trial: Trial, rate: float, slo: Slo, good: list[bool]) -> Step:
    """The step so far, with this trial's requests added to `good`."""
    warmup_s = trial.result.scenario["warmup_s"]
    good += [
        is_good(record, slo) for record in trial.records if record.intended_s >= warmup_s and counts_for_slo(record)
    ]
    return decide(rate, good, slo)


def _hopeless(rate: float, records: Sequence[Record]) -> Step:
    return Step(
        rate_rps=rate,
        is_held=False,
        is_proven=True,
        share=None,
        share_low=None,
        share_high=None,
        num_requests=sum(counts_for_slo(record) for record in records),
    )


def decide(rate: float, good: Sequence[bool], slo: Slo) -> Step:
    """Held or not, and whether that is proven, from the requests at this rate in order of time."""
    share = sum(good) / len(good) if good else 0.0
    low, high = share_interval(good)
    is_held = share >= slo.share
    return Step(
        rate_rps=rate,
        is_held=is_held,
        is_proven=low >= slo.share if is_held else high < slo.share,
        share=share,
        share_low=low,
        share_high=high,
        num_requests=len(good),
    )


def bracket(steps: Sequence[Step]) -> tuple[float | None, float | None]:
    """(highest rate that held below the lowest that broke, lowest that broke)."""
    broke = min((step.rate_rps for step in steps if not step.is_held), default=None)
    held = max(
        (step.rate_rps for step in steps if step.is_held and (broke is None or step.rate_rps < broke)), default=None
    )
    return held, broke


def next_rate(steps: Sequence[Step], bounds: Bounds) -> float | str:
    """The rate to try next, or why the search is over."""
    held, broke = bracket(steps)
    if len(steps) >= bounds.max_steps:
        return "steps"
    if held is None and broke is None:
        return bounds.start_rps
    if broke is None:
        assert held is not None
        return min(held * 2, bounds.highest_rps) if held < bounds.highest_rps else "bounds"
    if held is None:
        return max(broke / 2, bounds.lowest_rps) if broke > bounds.lowest_rps else "bounds"
    if broke <= held * (1 + bounds.tolerance):
        return "tolerance"
    return math.sqrt(held * broke)


def conclude(steps: Sequence[Step], slo: Slo, stopped: str) -> SweepResult:
    """What the steps say together."""
    held, broke = bracket(steps)
    proven = max((step.rate_rps for step in steps if step.is_held and step.is_proven), default=None)
    refuted = min((step.rate_rps for step in steps if not step.is_held and step.is_proven), default=None)
    return SweepResult(
        verdict=_verdict(slo, held, broke, proven, refuted),
        slo=slo.model_dump(exclude_none=True),
        max_rate_rps=held,
        proven_rps=proven,
        refuted_rps=refuted,
        stopped_because=stopped,
        steps=sorted(steps, key=lambda step: step.rate_rps),
    )


def _verdict(slo: Slo, held: float | None, broke: float | None, proven: float | None, refuted: float | None) -> str:
    names = (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("E2E", slo.e2e_s))
    limits = ", ".join(f"{name} {limit * 1e3:.4g} ms" for name, limit in names if limit is not None)
    wanted = f"{limits} for {slo.share:.0%} of requests"
    if held is None:
        return f"No rate tried holds {wanted}" + (f"; lowest tried {broke:.3g} req/s." if broke else ".")
    confidence = [f"proven at {proven:.3g}" if proven else "not proven at any rate"]
    confidence.append(f"refuted at {refuted:.3g}" if refuted else "refuted at none")
    return f"Holds {held:.3g} req/s within {wanted} ({', '.join(confidence)} req/s, 95 % confidence)."


class Hopeless:
    """Ends a run early once so many requests are bad that the SLO cannot hold any more. Latencies in progress
    messages are a sample, so it may be late in seeing it, never wrong."""

    def __init__(self, slo: Slo, stop: asyncio.Event) -> None:
        self._slo = slo
        self._stop = stop
        self._allowed = math.inf
        self._slow = 0
        self._failed: dict[int, int] = {}
        self.is_hopeless = False

    def plan(self, num_requests: int, num_warmup: int = 0) -> None:
        """Before the run. Requests of the warm-up may all be bad, for they are not measured."""
        self._allowed = num_requests * (1 - self._slo.share) + num_warmup

    def progress(self, worker: int, progress: Progress) -> None:
        """What a worker says."""
        if self._slo.ttft_s is not None:
            self._slow += sum(ttft > self._slo.ttft_s for ttft in progress.ttfts_s)
        self._failed[worker] = sum(count for outcome, count in progress.outcomes.items() if Outcome(outcome).is_failure)
        if self._slow + sum(self._failed.values()) > self._allowed:
            self.is_hopeless = True
            self._stop.set()
