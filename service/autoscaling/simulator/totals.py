"""What a simulated replica has done."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.autoscaling.signals import StepTotals
from service.autoscaling.simulator.sequence import SimulatedSequence
from service.autoscaling.simulator.workload import SimulatedRequest


@dataclass(slots=True)
class ReplicaTotals:
    """Counters since the start of the replica, as it would report them."""

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_hit_tokens: int = 0
    num_steps: int = 0
    num_sequences: int = 0
    num_prefill_tokens: int = 0
    num_context_tokens: int = 0
    busy_s: float = 0.0
    num_preemptions: int = 0
    finished: list[SimulatedSequence] = field(default_factory=list)  # since they were last taken
    turned_away: list[SimulatedRequest] = field(default_factory=list)  # likewise

    def steps(self) -> StepTotals:
        return StepTotals(
            num_steps=self.num_steps,
            num_sequences=self.num_sequences,
            num_prefill_tokens=self.num_prefill_tokens,
            num_context_tokens=self.num_context_tokens,
            duration_s=self.busy_s,
        )
