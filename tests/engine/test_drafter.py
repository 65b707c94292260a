"""Guesses by what came before: the longest match, the latest one, and as many as are worth it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.drafter import FIRST_CHANCE, LENGTHS, MOST_INDEXED, Drafter


def propose(token_ids: list[int], limit: int = 4, least_chance: float = 0.0) -> list[int]:
    return Drafter().propose(token_ids, limit=limit, least_chance=least_chance)


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([], []),
        ([1], []),
        ([1, 2], []),
        ([1, 2, 3, 1], []),  # one token in common is too little
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1]),
        ([1, 2, 7, 1, 2, 8, 1, 2], [8, 1, 2, 8]),  # the latest of equals
        ([0, 1, 2, 7, 1, 2, 8, 0, 1, 2], [7, 1, 2, 8]),  # a longer match before a later one
        ([5, 5, 5], [5, 5, 5, 5]),  # what follows the end is the draft itself
        ([1, 2, 1, 2, 1], [2, 1, 2, 1]),
    ],
)
def test_what_followed_last_time_follows_again(token_ids: list[int], expected: list[int]) -> None:
    """The continuation of the last occurrence of the longest n-gram."""
    assert propose(token_ids) == expected


def searched(token_ids: list[int], limit: int) -> list[int]:
    """The definition, slowly."""
    for length in LENGTHS:
        for end in range(len(token_ids) - 1, length - 1, -1):
            if token_ids[end - length : end] == token_ids[-length:]:
                extended = list(token_ids)
                for i in range(limit):
                    extended.append(extended[end + i])
                return extended[len(token_ids) :]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.data())
def test_the_index_finds_what_a_search_finds(token_ids: list[int], data: st.DataObject) -> None:
    """However the tokens come: all at once, or a few between two proposals."""
    drafter = Drafter()
    end = 0
    while end < len(token_ids):
        end = data.draw(st.integers(end + 1, len(token_ids)))
        assert drafter.propose(token_ids[:end], limit=5, least_chance=0.0) == searched(token_ids[:end], 5)


CIRCLE = [1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("least_chance", "expected"),
    [
        (0.0, 4),
        (FIRST_CHANCE**4, 4),
        (FIRST_CHANCE**3, 3),
        (FIRST_CHANCE, 1),
        (FIRST_CHANCE + 0.01, 0),
        (1.1, 0),
    ],
)
def test_a_guess_that_is_not_worth_it_is_not_made(least_chance: float, expected: int) -> None:
    """Each depends on all before it."""
    assert len(propose(CIRCLE, least_chance=least_chance - 1e-12)) == expected


def test_of_a_long_prompt_the_last_tokens_are_known() -> None:
    """What is further back is not looked for: indexing it would hold up the step of everybody."""
    near, far = [1, 2, 3, *range(10, MOST_INDEXED), 1, 2], [1, 2, 3, *range(10, 2 * MOST_INDEXED), 1, 2]
    assert propose(near, limit=1) == [3]
    assert propose(far, limit=1) == []


def test_bad_guesses_end() -> None:
    """They get shorter, then there are none."""
    drafter = Drafter()
    lengths = []
    for end in range(1, 9):
        draft = drafter.propose([5] * (5 + end), limit=4, least_chance=0.2)
        lengths.append(len(draft))
        if draft:
            drafter.learn(len(draft), 0)

    assert lengths[0] > 1
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 0


def test_guesses_come_back_when_they_would_have_been_right() -> None:
    """One that is not made is judged as well, by the token that comes: a text that begins to repeat is noticed."""
    token_ids = [1, 2, 9, 8, 7] * 4
    drafter = Drafter()
    drafter.learn(1, 0)
    lengths = [len(drafter.propose(token_ids[:end], limit=4, least_chance=0.5)) for end in range(6, len(token_ids))]

    assert lengths[:2] == [0, 0]
    assert lengths[-1] > 0


def test_a_guess_that_would_have_been_wrong_makes_others_less_likely() -> None:
    """The chance falls though nothing was drafted."""
    drafter = Drafter()
    drafter.propose(CIRCLE, limit=4, least_chance=0.9)
    before = drafter.chance
    drafter.propose([*CIRCLE, 7], limit=4, least_chance=0.9)

    assert drafter.chance < before


@given(st.lists(st.integers(0, 4).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=60))
def test_a_chance_stays_one(judged: list[tuple[int, int]]) -> None:
    """Between 0 and 1, and higher after a good draft than after a bad one."""
    good, bad = Drafter(), Drafter()
    for num_drafted, num_accepted in judged:
        good.learn(num_drafted, num_accepted)
        bad.learn(num_drafted, num_accepted)
    good.learn(2, 2)
    bad.learn(2, 0)

    assert 0.0 <= bad.chance < good.chance <= 1.0
