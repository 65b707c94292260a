"""Decisions in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.reason import Learned, Terms, explain

LEARNED = Learned(18.0, 11.0, 1000.0, 200.0, 0.1, 0.35, 0.025, 5e-4, 1e-4, 1e-7, 48.0)
TERMS = Terms(
    num_ready=4,
    num_starting=0,
    desired=6,
    work=3.9,
    need=5.1,
    growth=0.0,
    forecast_error=0.0,
    backlog=0,
    queue_s=0.0,
    drained_s=0.0,
    held=5,
    held_idle_s=0.0,
    held_for_s=60.0,
    held_price=60.0,
    misses_with_one_less=3.0,
    misses_with_one_more=0.0,
    num_lost=0,
    num_unknown=0,
    is_warming_up=False,
    is_down_forbidden=False,
    learned=LEARNED,
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, "4 → 6: 3.9 replicas of work now, 5.1 with its bursts."),
        ({"growth": 0.5}, "4 → 6: 3.9 replicas of work now, 5.1 with its bursts, 5.6 in 18 s as it grows."),
        (
            {"backlog": 9, "desired": 9, "queue_s": 6.0, "drained_s": 20.0},
            "4 → 9: 3.9 replicas of work now, 5.1 with its bursts, "
            "a backlog of 6 s that 9 replicas bring in time in 20 s.",
        ),
        (
            {"num_ready": 7, "held": 7, "desired": 7, "held_idle_s": 40.0, "held_for_s": 300.0, "held_price": 290.0},
            "7 stay: 3.9 replicas of work now, 5.1 with its bursts, replica 7 kept though idle for 40 s of 300 s, "
            "as the price of its absence is 290 replica-s.",
        ),
        (
            {"desired": 7, "num_lost": 1},
            "4 → 7: 3.9 replicas of work now, 5.1 with its bursts, 1 more for as many that take too long to start.",
        ),
        (
            {"need": 30.0, "desired": 24},
            "4 → 24: 3.9 replicas of work now, 30.0 with its bursts, no more than max_replicas 24.",
        ),
        (
            {"learned": replace(LEARNED, step_base_s=0.15)},
            "4 → 6: 3.9 replicas of work now, 5.1 with its bursts, "
            "and none can meet slo_tpot_s 0.1: a token takes 0.15 s even alone.",
        ),
    ],
)
def test_a_decision_is_one_sentence_with_what_decided(change: dict[str, Any], sentence: str) -> None:
    """From how many to how many, the demand, and the term that bound."""
    assert explain(replace(TERMS, **change), AutoscalingConfig()) == sentence


def test_all_numbers_are_there_for_logs() -> None:
    """Flat, floats only, what is learned included, and the load with one replica less."""
    numbers = TERMS.numbers()
    assert numbers["cold_start_s"] == 18.0
    assert numbers["load_with_one_less"] == pytest.approx(5.1 / 5)
    assert {type(value) for value in numbers.values()} == {float}
