"""Learning what a step costs, and what a replica carries."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.autoscaling.cost_model import Fit, Mix, capacity, prior_of_model
from service.autoscaling.signals import EngineLimits, StepTotals
from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost

TRUE = StepCost(base_s=0.025, per_sequence_s=5e-4, per_prefill_token_s=1e-4, per_context_token_s=1e-7)
PRIOR = StepCost(base_s=0.01, per_sequence_s=2e-3, per_prefill_token_s=5e-4, per_context_token_s=1e-6)
MIX = Mix(num_uncached_tokens=1000.0, num_prompt_tokens=1000.0, num_output_tokens=200.0)


def report(num_sequences: int, num_prefill_tokens: int, num_context_tokens: int, cost: StepCost = TRUE) -> StepTotals:
    """Thirty equal steps."""
    duration_s = (
        cost.base_s
        + cost.per_sequence_s * num_sequences
        + cost.per_prefill_token_s * num_prefill_tokens
        + cost.per_context_token_s * num_context_tokens
    )
    return StepTotals(
        num_steps=30,
        num_sequences=30 * num_sequences,
        num_prefill_tokens=30 * num_prefill_tokens,
        num_context_tokens=30 * num_context_tokens,
        duration_s=30 * duration_s,
    )


def step_s(cost: StepCost, sequences: int, prefill: int, context: int) -> float:
    return report(sequences, prefill, context, cost).duration_s / 30


def test_varied_steps_reveal_their_cost() -> None:
    """After a few hundred reports of changing load every coefficient is within five percent of the truth."""
    rng, fit = Random(0), Fit.of_prior(PRIOR)
    for _ in range(400):
        fit = fit.update([report(rng.randint(1, 48), rng.randint(0, 450), rng.randint(1000, 90_000)) for _ in range(3)])
    learned = fit.cost
    assert learned.base_s == pytest.approx(TRUE.base_s, rel=0.05)
    assert learned.per_sequence_s == pytest.approx(TRUE.per_sequence_s, rel=0.05)
    assert learned.per_prefill_token_s == pytest.approx(TRUE.per_prefill_token_s, rel=0.05)
    assert learned.per_context_token_s == pytest.approx(TRUE.per_context_token_s, rel=0.05)


def test_one_steady_state_fits_itself_and_spoils_nothing() -> None:
    """A thousand equal steps are predicted exactly; what they cannot tell apart stays finite and not negative."""
    fit = Fit.of_prior(PRIOR)
    for _ in range(1000):
        fit = fit.update([report(20, 100, 25_000)])
    assert step_s(fit.cost, 20, 100, 25_000) == pytest.approx(step_s(TRUE, 20, 100, 25_000), rel=0.02)
    assert 0.2 < step_s(fit.cost, 40, 200, 50_000) / step_s(TRUE, 40, 200, 50_000) < 3.0


@given(st.lists(st.builds(report, st.integers(0, 64), st.integers(0, 512), st.integers(0, 10**6)), max_size=20))
def test_no_report_makes_a_cost_negative(reports: list[StepTotals]) -> None:
    """Whatever is reported, costs stay at 0 or above."""
    fit = Fit.of_prior(PRIOR)
    for one in reports:
        fit = fit.update([one])
    assert min(fit.theta) >= 0.0


def test_a_model_of_known_size_has_a_prior() -> None:
    """8 billion parameters in 16 GB at 2 TB/s and 400 TFLOP/s: 8 ms a step, 40 µs a token."""
    prior = prior_of_model(8e9, 16e9, 2e12, 4e14)
    assert prior.base_s == pytest.approx(8e-3)
    assert prior.per_prefill_token_s == pytest.approx(4e-5)


def test_silence_teaches_nothing() -> None:
    """No steps, no change."""
    fit = Fit.of_prior(PRIOR)
    assert fit.update([]) is fit
    assert fit.update([StepTotals()]) is fit
    assert fit.cost.per_sequence_s == pytest.approx(PRIOR.per_sequence_s)


@pytest.mark.parametrize(
    ("mix", "limits", "batch"),
    [
        (MIX, EngineLimits(), 48.0),  # the sequence limit
        (Mix(2048.0, 2048.0, 28.0), EngineLimits(), 512 / (1 + 2048 / 28)),  # the token budget
        (MIX, EngineLimits(kv_tokens=11_000), 9.0),  # the cache: 0.9 · 11000 / (1000 + 100)
        (
            MIX,
            EngineLimits(max_num_seqs=512, max_num_batched_tokens=8192),
            (0.085 - 0.025) / (5e-4 + 5e-4 + 1.1e-4),
        ),  # TPOT
    ],
)
def test_the_operating_point_is_the_tightest_bound(mix: Mix, limits: EngineLimits, batch: float) -> None:
    """One of sequences, tokens, cache and TPOT decides."""
    assert capacity(TRUE, mix, Slo(), limits).batch == pytest.approx(batch)


def test_a_target_that_cannot_be_met_asks_for_a_replica_for_each_sequence() -> None:
    """And for no more, as more would not help."""
    decode_only = Mix(0.0, 1000.0, 200.0)
    carried = capacity(TRUE, decode_only, Slo(tpot_s=0.01), EngineLimits())
    assert carried.batch == pytest.approx(1.0)
    assert carried.work_s == pytest.approx(200 * (0.025 + 5e-4 + 1e-7 * 1100))


def test_work_is_the_inverse_of_throughput() -> None:
    """`batch` sequences bring one output each step: a replica serves batch / (output · step) requests a second."""
    carried = capacity(TRUE, MIX, Slo(), EngineLimits())
    assert carried.work_s == pytest.approx(200 * carried.step_s / carried.batch)
    assert carried.prefill_s_per_token * 1000 + carried.decode_s == pytest.approx(carried.work_s)


@given(st.floats(1, 1e5), st.floats(0, 1), st.floats(1, 1e4), st.floats(1e-3, 10), st.floats(1e-4, 1))
def test_capacity_is_positive_whatever_the_mix(
    prompt: float, cached: float, out: float, ttft: float, tpot: float
) -> None:
    """Even where the target cannot be met at all."""
    carried = capacity(TRUE, Mix(prompt * cached, prompt, out), Slo(ttft_s=ttft, tpot_s=tpot), EngineLimits())
    assert carried.work_s > 0.0
    assert carried.batch > 0.0
    assert carried.prefill_s_per_token >= 0.0
