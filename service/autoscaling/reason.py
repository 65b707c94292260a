"""A decision in words, for whoever reads it at night."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from service.autoscaling.config import AutoscalingConfig
from service.engine.synthetic import StepCost


@dataclass(frozen=True, slots=True)
class Learned:
    """What is believed of starts, requests, steps (in seconds) and of the batch at which a replica is full."""

    cold_start_s: float
    requests_per_s: float
    prompt_tokens_per_request: float
    output_tokens_per_request: float
    hit_share: float
    work_s_per_request: float
    step_base_s: float
    step_s_per_sequence: float
    step_s_per_prefill_token: float
    step_s_per_context_token: float
    batch: float

    @property
    def alone_s(self) -> float:
        """Between two tokens of a sequence that has a replica to itself."""
        context = self.prompt_tokens_per_request + self.output_tokens_per_request / 2.0
        cost = StepCost(
            base_s=self.step_base_s,
            per_sequence_s=self.step_s_per_sequence,
            per_prefill_token_s=self.step_s_per_prefill_token,
            per_context_token_s=self.step_s_per_context_token,
        )
        return cost.of(1, 0, context)


@dataclass(frozen=True, slots=True)
class Terms:
    """Every number behind a decision. Work in replicas (replica-seconds per second), times in seconds.

    `work`: average of the last minute; `need`: replicas for it and its bursts; `growth`: more of it one cold start from
    now; `forecast_error`: the need less what was forecast for now one cold start ago (nan: nothing was); `backlog` and
    `held`: replicas that the queue, or the price of absence, ask for (0: none); `held_idle_s` and `held_for_s`: how
    long the highest held level has not been needed, and how long it may be; `held_price`: of its absence, in
    replica-seconds, nan while unknown; `misses_with_one_less` (`more`): requests of the last minute that a fleet of one
    replica less (more) than desired would have served late, to be weighed against 60 replica-seconds.
    """

    num_ready: int
    num_starting: int
    desired: int
    work: float
    need: float
    growth: float
    forecast_error: float
    backlog: int
    queue_s: float
    drained_s: float
    held: int
    held_idle_s: float
    held_for_s: float
    held_price: float
    misses_with_one_less: float
    misses_with_one_more: float
    num_lost: int
    num_unknown: int
    is_warming_up: bool
    is_down_forbidden: bool
    learned: Learned

    @property
    def load_with_one_less(self) -> float:
        """Need over one replica less than desired: above 1 the bursts of the last minute would have been late."""
        return (self.need + self.growth) / max(1, self.desired - 1)

    def numbers(self) -> dict[str, float]:
        """All of it, flat, for logs and metrics."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        learned = values.pop("learned")
        values |= {field.name: getattr(learned, field.name) for field in fields(learned)}
        return {name: float(value) for name, value in values.items()} | {"load_with_one_less": self.load_with_one_less}


def explain(terms: Terms, config: AutoscalingConfig) -> str:
    """One sentence: from how many to how many, and the term that decided."""
    asked = terms.num_ready + terms.num_starting
    parts = [f"{terms.work:.1f} replicas of work now, {terms.need:.1f} with its bursts"]
    if terms.growth > 0.0:
        parts.append(f"{terms.need + terms.growth:.1f} in {terms.learned.cold_start_s:.0f} s as it grows")
    if terms.backlog:
        parts.append(
            f"a backlog of {terms.queue_s:.0f} s that {terms.backlog} replicas bring in time in {terms.drained_s:.0f} s"
        )
    parts += _binding(terms, asked, config)
    head = f"{asked} → {terms.desired}" if asked != terms.desired else f"{asked} stay"
    return f"{head}: {', '.join(parts)}."


def _binding(terms: Terms, asked: int, config: AutoscalingConfig) -> list[str]:
    """What held the fleet up or down against the demand."""
    parts = []
    if terms.learned.alone_s > config.slo.tpot_s:
        target_s, alone_s = config.slo.tpot_s, terms.learned.alone_s
        parts.append(f"and none can meet slo_tpot_s {target_s:g}: a token takes {alone_s:.2f} s even alone")
    wanted = max(math.ceil(terms.need + terms.growth), terms.backlog)
    if terms.held > wanted and terms.held >= terms.desired - terms.num_lost:
        price = "is not known yet" if terms.held_price != terms.held_price else f"is {terms.held_price:.0f} replica-s"
        parts.append(
            f"replica {terms.held} kept though idle for {terms.held_idle_s:.0f} s of {terms.held_for_s:.0f} s, "
            f"as the price of its absence {price}"
        )
    if terms.num_lost:
        parts.append(f"{terms.num_lost} more for as many that take too long to start")
    if terms.is_down_forbidden and terms.desired == asked:
        parts.append(f"not less, as {_unknown(terms)}")
    if terms.desired == config.max_replicas < wanted + terms.num_lost:
        parts.append(f"no more than max_replicas {config.max_replicas}")
    if terms.desired == config.min_replicas > max(wanted, terms.held):
        parts.append(f"no less than min_replicas {config.min_replicas}")
    return parts


def _unknown(terms: Terms) -> str:
    """Why the fleet may not shrink."""
    if terms.is_warming_up:
        return "the fleet has been watched too briefly"
    return "1 source is silent" if terms.num_unknown == 1 else f"{terms.num_unknown} sources are silent"
