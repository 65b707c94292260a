"""Random draws: how often each token comes, and that neighbours do not matter."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.sampler import _draw, sample, uniform
from tests.engine.logits import VOCAB_SIZE, drawn, probabilities, row, sequence, sequence_with, token
from tests.engine.strategies import sampling_params


class TestDistribution:
    @pytest.mark.parametrize(
        ("sampling", "expected"),
        [
            ({}, [0.1, 0.2, 0.3, 0.4]),
            ({"top_k": 2}, [0.0, 0.0, 3 / 7, 4 / 7]),
            ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
            ({"logit_bias": ((0, math.log(4)),)}, [4 / 13, 2 / 13, 3 / 13, 4 / 13]),
        ],
    )
    def test_tokens_come_as_often_as_they_should(self, sampling: dict[str, Any], expected: list[float]) -> None:
        """Over 10000 seeds each frequency is within five standard deviations of its probability."""
        counts = drawn(probabilities(0.1, 0.2, 0.3, 0.4), num_draws=10_000, **sampling)

        for token_id, p in enumerate(expected):
            assert abs(counts[token_id] - 10_000 * p) <= 5 * math.sqrt(10_000 * p * (1 - p))

    def test_successive_tokens_of_one_sequence_are_independent(self) -> None:
        """Pairs of successive draws of a fair coin come equally often."""
        coin = row(0.0, 0.0)
        seq = sequence(temperature=1.0, seed=1)
        for _ in range(4000):
            seq.token_ids.append(token(coin, seq) or 0)
        pairs = Counter(pairwise(seq.token_ids[1:]))

        assert all(abs(count - 1000) <= 5 * math.sqrt(4000 * 3 / 16) for count in pairs.values())

    def test_an_impossible_token_never_comes(self) -> None:
        """Not even for the number 0, at which the cumulative probability of the first is."""
        assert _draw(row(-math.inf, 0.0), sequence(temperature=1.0).sampling, 0.0) == 1

    def test_uniform_numbers_are_below_one(self) -> None:
        """Any seed, negative and beyond 64 bits too, gives a number in [0, 1)."""
        numbers = [uniform(seed, k) for seed in (-(2**63), -1, 0, 2**63 + 126) for k in range(100)]

        assert all(0.0 <= number < 1.0 for number in numbers)
        assert len(set(numbers)) == len(numbers)


class TestIndependence:
    @given(data=st.data(), num_rows=st.integers(2, 6), seed=st.integers(0, 99))
    @settings(deadline=None)
    def test_a_row_gets_the_same_result_whatever_its_neighbours(
        self, data: st.DataObject, num_rows: int, seed: int
    ) -> None:
        """Bit for bit: token and log-probabilities, for any mix of parameters, in any place."""
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(num_rows, VOCAB_SIZE, generator=generator)
        params = data.draw(st.lists(sampling_params(vocab_size=VOCAB_SIZE), min_size=num_rows, max_size=num_rows))
        rows = [sequence_with(each) for each in params]

        together = sample(logits, rows)
        alone = [sample(logits[i : i + 1], [rows[i]])[0] for i in range(num_rows)]
        reversed_ = sample(logits.flip(0), rows[::-1])[::-1]

        assert together == alone == reversed_

    def test_the_counter_is_the_number_of_output_tokens(self) -> None:
        """A continuation elsewhere, with the first tokens as output, draws on where it stopped."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(20, 1000, generator=generator)
        whole = sequence(temperature=1.0, seed=5)
        for step in logits:
            whole.token_ids.append(token(step, whole) or 0)
        resumed = sequence(*whole.token_ids[1:11], temperature=1.0, seed=5)
        for step in logits[10:]:
            resumed.token_ids.append(token(step, resumed) or 0)

        assert resumed.token_ids == whole.token_ids

    def test_logits_are_not_changed(self) -> None:
        """Penalties work on a copy."""
        logits = torch.zeros(1, VOCAB_SIZE)

        sample(logits, [sequence(1, 2, repetition_penalty=2.0, logit_bias=((1, 5.0),), presence_penalty=1.0)])

        assert torch.equal(logits, torch.zeros(1, VOCAB_SIZE))
