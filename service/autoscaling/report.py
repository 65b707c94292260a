"""What a replica tells the autoscaler: gathered from its engine's steps, sent as numbers, read back."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from service.autoscaling.signals import EngineLimits, ReplicaStats, StepTotals
from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost
from service.errors import HeadcountError
from service.types import StepStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`cost_prior`: what the replica expects a step to cost. `start_up_s`: from its first line of code to readiness."""

    stats: ReplicaStats
    limits: EngineLimits
    cost_prior: StepCost
    start_up_s: float
    is_draining: bool = False

    def to_numbers(self) -> dict[str, float]:
        """Flat, as Serve wants it: a name for each number."""
        stats = asdict(self.stats)
        steps = stats.pop("steps")
        limits = {f"limit_{name}": value for name, value in asdict(self.limits).items()}
        steps = {f"step_{name}": value for name, value in steps.items()}
        prior = {f"prior_{name}": value for name, value in asdict(self.cost_prior).items()}
        own = {"start_up_s": self.start_up_s, "is_draining": float(self.is_draining)}
        return {**stats, **steps, **limits, **prior, **own}

    @classmethod
    def of_numbers(cls, numbers: Mapping[str, float]) -> Report | None:
        """What `to_numbers` made, or None where a number is missing or makes no sense: unknown, not zero."""
        try:
            steps = StepTotals(**{field.name: numbers[f"step_{field.name}"] for field in fields(StepTotals)})
            limits = EngineLimits(**{f.name: int(numbers[f"limit_{f.name}"]) for f in fields(EngineLimits)})
            counts = {f.name: numbers[f.name] for f in fields(ReplicaStats) if f.name != "steps"}
            stats = ReplicaStats(steps=steps, **counts)  # type: ignore[arg-type]
            return cls(
                stats=stats,
                limits=limits,
                cost_prior=StepCost(**{f.name: numbers[f"prior_{f.name}"] for f in fields(StepCost)}),
                start_up_s=numbers["start_up_s"],
                is_draining=numbers["is_draining"] > 0.0,
            )
        except (KeyError, ValueError, OverflowError, HeadcountError):
            return None


class Collector:
    """Adds up what the steps of one engine bring. `on_step` runs on the engine's thread, `read` on any."""

    def __init__(self, slo: Slo) -> None:
        self._slo = slo
        self._stats = ReplicaStats.idle(at=0.0)
        self._lock = threading.Lock()

    def on_step(self, step: StepStats) -> None:
        """Take in one engine step."""
        with self._lock:
            stats = self._stats
            self._stats = ReplicaStats(
                at=0.0,
                num_running=step.num_running,
                num_waiting=step.num_waiting,
                num_prefill_left=step.num_prefill_left,
                kv_usage=step.kv_usage,
                num_requests=stats.num_requests + step.num_arrived + step.num_refused,
                num_prompt_tokens=stats.num_prompt_tokens
                + step.num_arrived_prompt_tokens
                + step.num_refused_prompt_tokens,
                num_hit_tokens=stats.num_hit_tokens + step.num_prefix_hit_tokens,
                num_finished=stats.num_finished + len(step.finished),
                num_output_tokens=stats.num_output_tokens + sum(t.num_output_tokens for _, t in step.finished),
                num_slo_misses=stats.num_slo_misses + sum(not self._slo.is_met(t) for _, t in step.finished),
                steps=_with(stats.steps, step),
                wait_s=step.wait_s,
            )

    def read(self, at: float) -> ReplicaStats:
        """The sums so far, as of instant `at`."""
        with self._lock:
            return replace(self._stats, at=at)


def _with(steps: StepTotals, step: StepStats) -> StepTotals:
    """`step` added; one that only aborted computed nothing and says nothing about what a step costs.

    A step in which drafts came true counts as the plain steps that it stands for, so that the cost of a step is that of
    a token for each sequence.
    """
    if step.num_scheduled == 0:
        return steps
    return StepTotals(
        num_steps=steps.num_steps + step.num_plain_steps,
        num_sequences=steps.num_sequences + step.num_plain_steps * step.num_scheduled,
        num_prefill_tokens=steps.num_prefill_tokens + step.num_prefill_tokens,
        num_context_tokens=steps.num_context_tokens + step.num_plain_steps * step.num_context_tokens,
        duration_s=steps.duration_s + step.duration_s,
    )
