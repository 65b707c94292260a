"""Which token comes next: the sets that may be drawn from, their frequencies, and independence of neighbours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.runner_protocol import SequenceResult
from service.engine.sampler import argmax, sample, token_logprob
from service.types import MIN_LOGPROB, SamplingParams
from tests.engine.logits import VOCAB_SIZE, drawn, logit_rows, probabilities, row, sequence, token
from tests.engine.strategies import sampling_params


class TestArgmax:
    @pytest.mark.parametrize("vocab_size", [1, 7, 256, 257, 511, 512, 1000])
    def test_it_is_the_first_maximum(self, vocab_size: int) -> None:
        """Equal to the plain definition, with many ties, for vocabularies that windows do and do not divide."""
        generator = torch.Generator().manual_seed(vocab_size)
        logits = torch.randint(-3, 4, (50, vocab_size), generator=generator).float()

        values, indices = argmax(logits)

        assert indices.tolist() == [int(np.argmax(each)) for each in logits.numpy()]
        assert torch.equal(values, logits.amax(-1))

    @pytest.mark.parametrize("column", [0, 300, 599])
    def test_a_nan_counts_as_the_maximum(self, column: int) -> None:
        """Wherever it is, the peak shows it."""
        logits = torch.zeros(2, 600)
        logits[1, column] = math.nan

        assert argmax(logits)[0].isnan().tolist() == [False, True]


class TestGreedy:
    @given(values=logit_rows)
    def test_temperature_to_zero_is_argmax(self, values: list[float]) -> None:
        """At 0, and as near to it as one likes; where two are equal, one of them."""
        best = {i for i, value in enumerate(values) if value == max(values)}

        assert token(row(*values), sequence(temperature=0.0)) == min(best)
        for temperature in (1e-300, 1e-12, 1e-6, 2e-5, 1e-3):
            assert token(row(*values), sequence(temperature=temperature)) in best

    def test_nothing_to_sample_is_nothing(self) -> None:
        """A step of prompt chunks alone brings no rows."""
        assert sample(torch.empty(0, 600), []) == []


class TestFilters:
    LOGITS = probabilities(0.05, 0.4, 0.25, 0.2, 0.1)

    @pytest.mark.parametrize(
        ("sampling", "expected"),
        [
            ({}, {0, 1, 2, 3, 4}),
            ({"top_k": 1}, {1}),
            ({"top_k": 3}, {1, 2, 3}),
            ({"top_k": 5}, {0, 1, 2, 3, 4}),
            ({"top_k": 99}, {0, 1, 2, 3, 4}),
            ({"top_p": 0.3}, {1}),
            ({"top_p": 0.64}, {1, 2}),
            ({"top_p": 0.66}, {1, 2, 3}),
            ({"min_p": 0.6}, {1, 2}),
            ({"min_p": 1.0}, {1}),
            ({"top_k": 2, "top_p": 0.6}, {1}),  # of 0.4 and 0.25 the first has 61 %
            ({"top_k": 2, "top_p": 0.63}, {1, 2}),
            ({"top_p": 0.9, "min_p": 0.6}, {1, 2}),
            ({"top_k": 4, "min_p": 0.3}, {1, 2, 3}),
        ],
    )
    def test_what_may_be_drawn(self, sampling: dict[str, Any], expected: set[int]) -> None:
        """Every token of the set comes, and no other."""
        assert drawn(self.LOGITS, **sampling).keys() == expected

    @pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 0.1}, {"top_p": 0.4}])
    def test_equal_tokens_are_kept_or_dropped_together(self, sampling: dict[str, Any]) -> None:
        """No order of sorting decides between them."""
        assert drawn(row(0.0, 3.0, 3.0, 0.0), **sampling).keys() == {1, 2}

    @given(values=logit_rows, params=sampling_params(vocab_size=VOCAB_SIZE))
    @settings(deadline=None)
    def test_sets_are_those_of_the_definition(self, values: list[float], params: SamplingParams) -> None:
        """The drawn token is in the top-k, in the nucleus and above min-p, by a float64 reference."""
        if params.temperature < 1e-5:
            return
        plain: dict[str, Any] = {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
        }
        chosen = token(row(*values), sequence(seed=params.seed, **plain))

        assert chosen in reference_set(values, params)

    def test_a_flat_distribution_needs_more_than_the_first_thousand(self) -> None:
        """Nine tenths of 5000 nearly equal tokens is 4500 of them, or one more or less."""
        logits = torch.linspace(0, 1e-3, 5000)

        tokens = drawn(logits, num_draws=3000, top_p=0.9)

        assert 450 < min(tokens) < 550

    def test_a_peaked_distribution_over_a_large_vocabulary(self) -> None:
        """The mass of what was not sorted counts: the nucleus of 0.5 is the peak alone."""
        logits = torch.zeros(50_000)
        logits[33_333] = 11.0  # more than half of all, 0.545

        assert drawn(logits, num_draws=200, top_p=0.5).keys() == {33_333}
        assert len(drawn(logits, num_draws=200, top_p=0.6)) > 1


def reference_set(values: list[float], params: SamplingParams) -> set[int]:
    """Tokens that top-k, then top-p, then min-p leave, with a little tolerance at the rims."""
    scaled = np.array(values) / params.temperature
    probs = np.exp(scaled - scaled.max())
    kept = probs / probs.sum()
    ranked = np.sort(kept)[::-1]
    if 0 < params.top_k < len(values):
        kept = np.where(kept >= ranked[params.top_k - 1] * (1 - 1e-5), kept, 0.0)
        ranked = ranked[: params.top_k]
    if params.top_p < 1.0:
        cumulative = np.cumsum(ranked) / ranked.sum()
        last = min(int(np.searchsorted(cumulative, params.top_p + 1e-6)), len(ranked) - 1)
        kept = np.where(kept >= ranked[last] * (1 - 1e-5), kept, 0.0)
    return {i for i, p in enumerate(kept) if p > 0 and p >= params.min_p * kept.max() * (1 - 1e-5)}


class TestAdjustments:
    @pytest.mark.parametrize(
        ("sampling", "expected"),
        [
            # logits 2.0, 1.9, 1.01, -1.0; prompt (0,), output (1, 1)
            ({}, 0),
            ({"repetition_penalty": 2.0}, 2),  # prompt and output
            ({"presence_penalty": 0.5}, 0),
            ({"presence_penalty": -0.2}, 1),
            ({"frequency_penalty": -0.06}, 1),  # twice -0.06
            ({"frequency_penalty": -0.04}, 0),
            ({"logit_bias": ((2, 1.5),)}, 2),
            ({"logit_bias": ((3, 100.0),)}, 3),
            ({"logit_bias": ((0, -100.0),)}, 1),
        ],
    )
    def test_what_changes_the_choice(self, sampling: dict[str, Any], expected: int) -> None:
        """Greedy choice after each adjustment alone."""
        logits = row(2.0, 1.9, 1.01, -1.0)

        assert token(logits, sequence(1, 1, temperature=0.0, **sampling)) == expected

    def test_repetition_penalty_makes_negative_logits_smaller(self) -> None:
        """It multiplies what is below zero, so that a penalty is one there too."""
        assert token(row(-1.0, -1.5), sequence(temperature=0.0, repetition_penalty=2.0)) == 1

    def test_presence_and_frequency_look_at_the_output_only(self) -> None:
        """The prompt's tokens may be said again."""
        seq = sequence(prompt=(0, 0, 0), temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)

        assert token(row(1.0, 0.5), seq) == 0

    @pytest.mark.parametrize(("num_output", "expected"), [(0, 1), (1, 1), (2, 0), (3, 0)])
    def test_stop_tokens_are_forbidden_until_min_tokens(self, num_output: int, expected: int) -> None:
        """Neither the model's end nor a stop token comes before `min_tokens` others."""
        seq = sequence(
            *[1] * num_output, temperature=0.0, min_tokens=2, eos=frozenset({0}), stop_token_ids=frozenset({2})
        )

        assert token(row(3.0, 1.0, 2.0), seq) == expected

    def test_an_ignored_end_is_not_forbidden(self) -> None:
        """It is a token like any other then."""
        seq = sequence(temperature=0.0, min_tokens=2, eos=frozenset({0}), ignore_eos=True)

        assert token(row(3.0, 1.0), seq) == 0


class TestFaults:
    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize(
        "sampling", [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.0, "logit_bias": ((1, -100.0),)}]
    )
    def test_logits_that_are_not_finite_fail_their_row_alone(self, bad: float, sampling: dict[str, Any]) -> None:
        """The neighbour gets its token."""
        logits = torch.stack([row(0.0, bad, 1.0), row(0.0, 1.0, 2.0)])

        failed, fine = sample(logits, [sequence(**sampling), sequence(temperature=0.0)])

        assert failed == SequenceResult(error="The model's logits for the next token are not finite.")
        assert fine.token_ids == (2,)

    def test_a_row_of_minus_infinity_fails(self) -> None:
        """No token has a chance."""
        assert sample(torch.full((1, 4), -math.inf), [sequence(temperature=1.0)])[0].error is not None

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_forbidding_every_token_fails(self, temperature: float) -> None:
        """min_tokens with every token a stop token cannot go on."""
        seq = sequence(temperature=temperature, min_tokens=1, stop_token_ids=frozenset({0, 1}))

        assert sample(torch.zeros(1, 2), [seq])[0].error == "No token is allowed to come next."


class TestLogprobs:
    def test_they_are_raw(self) -> None:
        """Temperature, filters, bias and penalties do not show; the sampled token is there though not on top."""
        logits = probabilities(0.5, 0.3, 0.2)
        seq = sequence(2, temperature=2.0, top_k=1, logit_bias=((2, 100.0),), presence_penalty=1.0, logprobs=2, seed=3)

        [result] = sample(logits[None], [seq])

        [logprob] = result.logprobs
        assert result.token_ids == (logprob.token_id,) == (2,)
        assert logprob.logprob == pytest.approx(math.log(0.2), abs=1e-6)
        assert [token_id for token_id, _ in logprob.top] == [0, 1]
        assert [value for _, value in logprob.top] == pytest.approx([math.log(0.5), math.log(0.3)], abs=1e-6)

    @pytest.mark.parametrize(("asked", "expected"), [(0, 0), (1, 1), (20, 3)])
    def test_as_many_alternatives_as_asked_for(self, asked: int, expected: int) -> None:
        """No more than there are tokens."""
        assert len(token_logprob(row(0.0, 1.0, 2.0), 0, asked).top) == expected

    @given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=600), st.integers(0, 20))
    def test_of_equals_the_first_is_on_top(self, values: list[float], asked: int) -> None:
        """Alternatives come in the order of the greedy choice, so that a greedy token is always its own first one."""
        logits = row(*values)
        best_first = sorted(range(len(values)), key=lambda token_id: -values[token_id])

        scored = token_logprob(logits, 0, asked)

        assert [token_id for token_id, _ in scored.top] == best_first[:asked]
        assert int(argmax(logits[None])[1]) == best_first[0]

    def test_minus_infinity_is_reported_as_a_number(self) -> None:
        """JSON has no infinity."""
        scored = token_logprob(row(0.0, -math.inf), 1, 2)

        assert scored.logprob == MIN_LOGPROB
        assert scored.top[1] == (1, MIN_LOGPROB)

    def test_none_asked_none_given(self) -> None:
        """Without `logprobs` no time is spent on them."""
        assert sample(torch.zeros(1, 4), [sequence(temperature=0.0)])[0].logprobs == ()
