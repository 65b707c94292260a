"""What a step costs, learned from the steps themselves, and what one replica can therefore carry.

    step time = alpha + beta · sequences + gamma · prefill tokens + delta · context tokens        [s]

Each replica reports sums over its steps. The mean step of a report obeys the same equation, so that every report is one
observation, weighted by its number of steps over the square of its mean time (relative errors count alike). The fit is
recursive least squares with forgetting, drawn towards the last fit: what the observations do not tell stays as it was,
which is the prior at first. So a fleet in one steady state cannot spoil the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.autoscaling.signals import EngineLimits, StepTotals
from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost

Array = NDArray[np.float64]

_SCALE = np.array([1.0, 16.0, 256.0, 32768.0])  # typical magnitudes of the four terms, for conditioning
_FORGET = 0.995  # per report with steps: a memory of some 200 s
_PULL = 1e-3  # weight of the last fit, as a share of the weight of what was observed
_TPOT_SHARE = 0.85  # of the TPOT target that a full replica may use: requests differ
_KV_SHARE = 0.9  # of the cache that a full replica may use
_MAX_RELATIVE_ERROR = 0.25  # an observation that the model misses by more says that something else took the time


def prior_of_model(num_parameters: float, weight_bytes: float, bytes_per_s: float, flops_per_s: float) -> StepCost:
    """What a step should cost on a machine of such bandwidth and arithmetic: the weights are read once a step, and each
    token is two operations per parameter. Contexts are taken as 1/10,000 of a token each: a first guess, soon replaced.
    """
    per_token_s = 2.0 * num_parameters / flops_per_s
    return StepCost(
        base_s=weight_bytes / bytes_per_s,
        per_sequence_s=per_token_s,
        per_prefill_token_s=per_token_s,
        per_context_token_s=1e-4 * per_token_s,
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """The normal equations of everything seen so far, forgetting, and their solution. JSON: lists of numbers."""

    xtx: Array  # 4 × 4, scaled
    xty: Array  # 4, scaled
    theta: Array  # 4, scaled

    @classmethod
    def of_prior(cls, cost: StepCost) -> Fit:
        theta = (
            np.array([cost.base_s, cost.per_sequence_s, cost.per_prefill_token_s, cost.per_context_token_s]) * _SCALE
        )
        return cls(np.zeros((4, 4)), np.zeros(4), theta)

    @property
    def cost(self) -> StepCost:
        alpha, beta, gamma, delta = (self.theta / _SCALE).tolist()
        return StepCost(base_s=alpha, per_sequence_s=beta, per_prefill_token_s=gamma, per_context_token_s=delta)

    def update(self, reports: Sequence[StepTotals]) -> Fit:
        """Learn from what each replica did since its last report."""
        rows = [
            (r.num_steps, r.num_sequences, r.num_prefill_tokens, r.num_context_tokens, r.duration_s)
            for r in reports
            if r.num_steps > 0 and r.duration_s > 0.0
        ]
        if not rows:
            return self
        sums = np.array(rows, dtype=np.float64)
        steps, durations = sums[:, 0], sums[:, 4]
        # Dividing the mean step by its mean time: the equation reads 1 = theta · x / tau, in relative terms.
        x = sums[:, :4] / durations[:, None] / _SCALE
        weighted = x * steps[:, None]
        xtx, xty = _FORGET * self.xtx + weighted.T @ x, _FORGET * self.xty + weighted.sum(axis=0)
        pull = _PULL * np.diag(np.diag(xtx) + 1e-12)
        theta = np.linalg.solve(xtx + pull, xty + pull @ self.theta)
        if not np.all(np.isfinite(theta)):
            return self
        return Fit(xtx, xty, np.maximum(theta, 0.0))


@dataclass(frozen=True, slots=True)
class Mix:
    """The average request: tokens of the prompt that must be computed, tokens of the prompt, and of the output."""

    num_uncached_tokens: float
    num_prompt_tokens: float
    num_output_tokens: float


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica carries of a mix while it meets the TPOT target.

    Work is measured in replica-seconds: one replica does one each second. `prefill_s_per_token` of a request's work is
    due as soon as it arrives, `decode_s` spreads over `decode_span_s`.
    """

    batch: float  # sequences at the operating point
    step_s: float  # a step there
    work_s: float  # of an average request
    prefill_s_per_token: float
    decode_s: float
    decode_span_s: float


def capacity(cost: StepCost, mix: Mix, slo: Slo, limits: EngineLimits) -> Capacity:
    """The operating point: the largest batch in balance (prompts come in as fast as outputs go out) that keeps the step
    within the TPOT target, the token budget, the sequence limit and the cache.

    Where a sequence that decodes alone is slower than the target already, its time is the target: a replica for each
    sequence is all that can be done.
    """
    out = max(1.0, mix.num_output_tokens)
    prefill_per_sequence = mix.num_uncached_tokens / out  # prompt tokens that each decoding sequence brings to a step
    context = mix.num_prompt_tokens + out / 2.0
    alone_s = cost.of(1, 0, context)
    slope = cost.per_sequence_s + cost.per_prefill_token_s * prefill_per_sequence + cost.per_context_token_s * context
    batch = max(
        1.0 / out,
        min(
            (max(_TPOT_SHARE * slo.tpot_s, alone_s) - cost.base_s) / max(slope, 1e-12),
            limits.max_num_batched_tokens / (1.0 + prefill_per_sequence),
            limits.max_num_seqs,
            max(1.0, _KV_SHARE * limits.kv_tokens / context),
        ),
    )
    step_s = max(1e-6, cost.base_s + slope * batch)
    work_s = out * step_s / batch
    prefill_s_per_token = cost.per_prefill_token_s + cost.base_s / limits.max_num_batched_tokens
    decode_s = max(0.1 * work_s, work_s - prefill_s_per_token * mix.num_uncached_tokens)
    return Capacity(
        batch=batch,
        step_s=step_s,
        work_s=work_s,
        prefill_s_per_token=(work_s - decode_s) / max(1.0, mix.num_uncached_tokens),
        decode_s=decode_s,
        decode_span_s=out * step_s,
    )
