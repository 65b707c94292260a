"""A request on its way through a simulated replica, and whether it was served well."""

from __future__ import annotations

from dataclasses import dataclass

from service.autoscaling.signals import EngineLimits
from service.autoscaling.simulator.workload import SimulatedRequest
from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost


@dataclass(slots=True, eq=False)
class SimulatedSequence:
    """A request on its way. `num_tokens` are known at the replica's step `since_step`, and one more each step after
    it while it decodes. Instants are seconds of virtual time, None before they happen."""

    request: SimulatedRequest
    num_tokens: int
    num_uncomputed: int
    since_step: int = -1
    num_output_left: int = 0
    end_step: int = -1
    num_hit_tokens: int = 0
    first_token_at: float | None = None
    last_token_at: float | None = None

    @classmethod
    def of(cls, request: SimulatedRequest) -> SimulatedSequence:
        return cls(
            request, request.num_prompt_tokens, request.num_prompt_tokens, num_output_left=request.num_output_tokens
        )


def prefill_alone_s(num_prompt_tokens: int, cost: StepCost, limits: EngineLimits) -> float:
    """Time in which an idle replica brings the first token of a prompt, nothing of it cached."""
    chunk = limits.max_num_batched_tokens
    num_steps = -(-num_prompt_tokens // chunk)
    num_context = num_prompt_tokens + chunk * num_steps * (num_steps - 1) // 2
    return (
        num_steps * (cost.base_s + cost.per_sequence_s)
        + cost.per_prefill_token_s * (num_prompt_tokens - num_steps)
        + cost.per_context_token_s * num_context
    )


def meets(sequence: SimulatedSequence, slo: Slo, cost: StepCost, limits: EngineLimits) -> bool:
    """Whether a finished request had its first token in time, its own prefill apart, and the others at the pace."""
    request = sequence.request
    assert sequence.first_token_at is not None
    assert sequence.last_token_at is not None
    wait_s = sequence.first_token_at - request.arrival_at - prefill_alone_s(request.num_prompt_tokens, cost, limits)
    decode_s = sequence.last_token_at - sequence.first_token_at
    return wait_s <= slo.ttft_s and decode_s <= slo.tpot_s * (request.num_output_tokens - 1)
