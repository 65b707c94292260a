"""Ledger and memory: what is believed of reports, and what outlives a restart."""

from __future__ import annotations

import pytest

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.ledger import Counters, Ledger, read
from service.autoscaling.memory import Memory
from service.errors import ConfigError
from tests.autoscaling.strategies import ready, snapshot, stats

CONFIG = AutoscalingConfig()


def test_counters_become_growth() -> None:
    """Growth is what is new since the last report of each replica, and what is newly held."""
    _, ledger = read(snapshot(1.0, ready(0, stats(1.0, num_requests=10)), num_held=2), Ledger())
    seen, _ = read(snapshot(2.0, ready(0, stats(2.0, num_requests=13)), ready(1, stats(2.0, num_requests=4))), ledger)
    assert seen.dt == 1.0
    assert seen.num_requests == 3 + 4 - 2
    assert seen.num_unknown == 0


def test_a_lost_report_is_made_up_for_by_the_next() -> None:
    """A second without a report counts nothing, and the one after it counts both."""
    _, ledger = read(snapshot(1.0, ready(0, stats(1.0, num_requests=10))), Ledger())
    silent, ledger = read(snapshot(2.0, ready(0, None)), ledger)
    heard, _ = read(snapshot(3.0, ready(0, stats(3.0, num_requests=16))), ledger)
    assert (silent.num_requests, silent.num_unknown) == (0.0, 1)
    assert (heard.num_requests, heard.num_unknown) == (6.0, 0)


def test_a_replica_that_begins_anew_counts_from_zero() -> None:
    """Counters that fall are those of a new process under an old name."""
    assert (
        Counters(num_requests=3.0, num_steps=5.0).since(Counters(num_requests=90.0, num_steps=800.0)).num_requests
        == 3.0
    )


def test_memory_survives_json() -> None:
    """Reading what was written gives the same memory, as far as its own JSON tells."""
    memory = Memory.fresh(CONFIG)
    assert Memory.from_json(memory.to_json(), CONFIG).to_json() == memory.to_json()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 0}', Memory.fresh(CONFIG).to_json().replace('"trend"', '"trent"'), "null"],
)
def test_a_memory_that_is_not_ours_is_refused_in_a_sentence(text: str) -> None:
    """A damaged or foreign file says so and how to go on."""
    with pytest.raises(ConfigError, match="Remove it to start afresh"):
        Memory.from_json(text, CONFIG)


def test_a_memory_of_another_fleet_is_refused() -> None:
    """Its books have another number of levels."""
    with pytest.raises(ConfigError, match="max_replicas"):
        Memory.from_json(Memory.fresh(CONFIG).to_json(), AutoscalingConfig(max_replicas=3))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"min_replicas": 5, "max_replicas": 4}, "min_replicas"),
        ({"min_replicas": 0, "max_replicas": 0}, "max_replicas"),
        ({"replica_s_per_miss": 0.0}, "replica_s_per_miss"),
        ({"cold_start_prior_s": float("nan")}, "cold_start_prior_s"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_name(values: dict[str, float], name: str) -> None:
    """The setting at fault is in the sentence."""
    with pytest.raises(ConfigError, match=name):
        AutoscalingConfig(**values)  # type: ignore[arg-type]
