"""When to come back."""

from __future__ import annotations

import pytest

from service.engine.drain_rate import DrainRate


def test_the_time_is_the_number_over_the_rate() -> None:
    """Ten finished in the last five seconds: eight more take four."""
    rate = DrainRate()
    rate.note(4, 100.0)
    rate.note(6, 102.0)

    assert rate.time_for(8, 105.0) == pytest.approx(4.0)


def test_a_stall_makes_it_longer() -> None:
    """Time without a finish counts."""
    rate = DrainRate()
    rate.note(1, 100.0)

    assert rate.time_for(1, 101.0) < rate.time_for(1, 110.0)


@pytest.mark.parametrize("last", [None, 30.0])
def test_without_recent_knowledge_it_is_a_second(last: float | None) -> None:
    """Nothing has finished, or nothing lately: what was before says nothing about now."""
    rate = DrainRate()
    if last is not None:
        rate.note(5, last)

    assert rate.time_for(1000, 100.0) == 1.0


@pytest.mark.parametrize(("num_sequences", "expected"), [(0, 0.1), (10**6, 60.0)])
def test_it_is_between_a_tenth_of_a_second_and_a_minute(num_sequences: int, expected: float) -> None:
    """No client is told to hammer, or to go away."""
    rate = DrainRate()
    rate.note(1, 99.0)

    assert rate.time_for(num_sequences, 100.0) == expected
