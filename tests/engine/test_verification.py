"""Drafts against the sampler: what was guessed right counts, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.batch import ScheduledSequence
from service.engine.runner_protocol import SequenceResult
from service.engine.verification import Position, verify
from service.types import TokenLogprob
from tests.engine.logits import sequence


def scheduled(draft: Sequence[int]) -> ScheduledSequence:
    """One that has a token to compute."""
    seq = sequence(7)
    seq.num_computed_tokens = seq.num_tokens - 1
    return ScheduledSequence(seq, 1).with_draft(tuple(draft))


class Script:
    """A sampler that says `tokens`, one after the other; None is an error. Remembers the outputs it was asked after."""

    def __init__(self, *tokens: int | None) -> None:
        self._tokens = tokens
        self.asked: list[list[int]] = []

    def __call__(self, positions: Sequence[Position]) -> list[SequenceResult]:
        self.asked += [position.sequence.output_token_ids for position in positions]
        return [self._result(self._tokens[position.num_accepted]) for position in positions]

    def _result(self, token_id: int | None) -> SequenceResult:
        if token_id is None:
            return SequenceResult(error="no more")
        return SequenceResult((token_id,), (TokenLogprob(token_id, -1.0),))


@pytest.mark.parametrize(
    ("draft", "said", "expected"),
    [
        ([], [5], [5]),
        ([5], [6], [6]),
        ([5], [5, 6], [5, 6]),
        ([5, 6, 7], [5, 9], [5, 9]),
        ([5, 6, 7], [5, 6, 7, 8], [5, 6, 7, 8]),
        ([5, 6], [5, None], [5]),
        ([5, 6], [5, 6, None], [5, 6]),
    ],
)
def test_tokens_count_up_to_the_first_wrong_guess(
    draft: list[int], said: list[int | None], expected: list[int]
) -> None:
    """And the one that was said instead; an error ends the step before it. Log-probabilities come along."""
    script = Script(*said)

    [result] = verify([scheduled(draft)], script)

    assert result.error is None
    assert list(result.token_ids) == expected
    assert [logprob.token_id for logprob in result.logprobs] == expected
    assert script.asked == [[7, *said[:i]] for i in range(len(said))]


def test_an_error_without_a_draft_before_it_stays() -> None:
    """It is the sequence's own."""
    assert verify([scheduled([5])], Script(None)) == [SequenceResult(error="no more")]


def test_who_does_not_sample_gets_nothing() -> None:
    """In the middle of its prompt."""
    seq = sequence(prompt=(1, 2, 3))

    assert verify([ScheduledSequence(seq, 2), scheduled([])], Script(5))[0] == SequenceResult()


def test_the_sequence_itself_does_not_change() -> None:
    """A step may be tried again."""
    each = scheduled([5, 6])

    verify([each], Script(5, 6, 7))

    assert each.sequence.output_token_ids == [7]


@given(st.lists(st.lists(st.integers(0, 1), max_size=4), max_size=5), st.lists(st.integers(0, 1), min_size=5))
def test_neighbours_do_not_matter(drafts: list[list[int]], said: list[int]) -> None:
    """Each gets what it gets alone."""
    together = verify([scheduled(draft) for draft in drafts], Script(*said))

    assert together == [verify([scheduled(draft)], Script(*said))[0] for draft in drafts]
