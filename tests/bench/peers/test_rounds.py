"""Rounds of work for processes: everyone gets the same, and who dies is out."""

from __future__ import annotations

import random
import sys

import pytest

from service.bench.peers.entrants import Entrant
from service.bench.peers.rounds import MIXED_REQUESTS, compare, decode, mixed, prefill


def fake(name: str, *death: str) -> Entrant:
    return Entrant(name, (sys.executable, "-m", "tests.bench.peers.fake_contender", *death), {})


def test_every_entrant_does_every_round_of_every_load() -> None:
    """So many figures for each, all of them rates."""
    said: list[str] = []
    rates = compare([fake("a"), fake("b")], [decode(3), prefill(20), mixed()], 2, said.append)
    assert said == []
    assert [(load, *found) for load, found in rates.items()] == [
        ("decode 3", "a", "b"),
        ("prefill 20", "a", "b"),
        (f"mixed {MIXED_REQUESTS}", "a", "b"),
    ]
    assert all(len(found) == 2 and min(found) > 0.0 for by_name in rates.values() for found in by_name.values())


@pytest.mark.parametrize(
    ("death", "reason"), [("at-once", "cannot even load"), ("at-start", "MemoryError: no room for a prompt")]
)
def test_who_dies_takes_no_part_any_more(death: str, reason: str) -> None:
    """The last line of its complaint is said, once, and the others go on."""
    said: list[str] = []
    rates = compare([fake("dies", death), fake("lives")], [decode(1), decode(2)], 1, said.append)
    assert len(said) == 1
    assert "dies" in said[0]
    assert reason in said[0]
    assert [list(found) for found in rates.values()] == [["lives"], ["lives"]]


def test_rates_are_tokens_per_second() -> None:
    """Decode by its median step, prefill by its prompt, a mixed load by all it has put out."""
    assert decode(4).rate({}, {"step_s": [0.1, 9.0, 0.5]}) == 8.0
    assert prefill(100).rate({}, {"prefill_s": 0.5}) == 200.0
    asked = mixed().ask(random.Random(0))
    num_output = sum(max_tokens for _, max_tokens in asked["requests"])
    assert mixed().rate(asked, {"seconds": 2.0}) == num_output / 2
