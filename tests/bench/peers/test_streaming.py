"""Streams of many clients, on one server after the other."""

from __future__ import annotations

import sys

import pytest

from service.bench.peers.entrants import Entrant
from service.bench.peers.streaming import MAX_TOKENS, NUM_CLIENTS, REQUESTS_EACH, compare


def server(name: str, *command: str) -> Entrant:
    return Entrant(name, (sys.executable, *command), {})


def streaming(num_tokens: int) -> tuple[str, ...]:
    return ("-m", "tests.bench.peers.fake_server", str(num_tokens))


def test_every_stream_is_timed() -> None:
    """In every round: to its first event, and from event to event."""
    said: list[str] = []
    found = compare([server("a", *streaming(MAX_TOKENS))], 2, said.append)
    assert said == []
    latencies = found["a"]
    assert len(latencies.ttft_s) == len(latencies.tpot_s) == 2 * NUM_CLIENTS * REQUESTS_EACH
    assert min(latencies.ttft_s) > 0.0
    assert latencies.medians().keys() == {"ttft_s", "tpot_s"}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (streaming(3), f"streamed 3 tokens of {MAX_TOKENS}"),
        (("-c", "raise SystemExit(7)"), "ended with status 7"),
    ],
)
def test_who_does_not_serve_is_said_and_left_out(command: tuple[str, ...], reason: str) -> None:
    """An answer cut short is no fast answer."""
    said: list[str] = []
    assert compare([server("a", *command)], 1, said.append) == {}
    assert len(said) == 1
    assert reason in said[0]
