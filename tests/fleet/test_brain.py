"""The autoscaler at work, without Ray: what it sees, says, keeps and reads back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.autoscaling.memory import Memory
from service.autoscaling.policy import decide
from service.autoscaling.report import Report
from service.autoscaling.signals import (
    EngineLimits,
    IngressStats,
    Replica,
    ReplicaState,
    ReplicaStats,
    Snapshot,
    StepTotals,
)
from service.config import Settings
from service.engine.synthetic import StepCost
from service.fleet.brain import WAKING, Brain, autoscaling_config, state_directory_of
from service.fleet.observation import Observation
from tests.autoscaling.strategies import stats

COST = StepCost(base_s=0.1, per_sequence_s=0.01, per_prefill_token_s=1e-3)
LIMITS = EngineLimits(max_num_seqs=16, max_num_batched_tokens=128, kv_tokens=4096, block_size=16)


def settings(directory: Path, **changes: object) -> Settings:
    return Settings(**{"runner": "synthetic", "max_replicas": 8, "state_dir": directory, **changes})


class Brains:
    """Makes brains over one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._made: list[Brain] = []

    def new(self, **changes: str) -> Brain:
        variables = {
            "HEADCOUNT_RUNNER": "synthetic",
            "HEADCOUNT_MAX_REPLICAS": "8",
            "HEADCOUNT_STATE_DIR": str(self.directory),
            **changes,
        }
        self._made.append(Brain(variables, clock=lambda: 1000.0))
        return self._made[-1]

    def close(self) -> None:
        while self._made:
            self._made.pop().close()


@pytest.fixture
def brains(tmp_path: Path) -> Iterator[Brains]:
    made = Brains(tmp_path)
    yield made
    made.close()


def numbers(at: float, **changes: float) -> dict[str, float]:
    report = Report(stats=stats(at, **changes), limits=LIMITS, cost_prior=COST, start_up_s=1.0)
    return report.to_numbers()


def observation(at: float, *, target: int = 1, **changes: object) -> Observation:
    fields = {
        "at": at,
        "target": target,
        "running": ("a",),
        "numbers": {"a": numbers(at, num_requests=at, num_prompt_tokens=100 * at)},
        "num_held": 0.0,
    }
    return Observation(**{**fields, **changes})  # type: ignore[arg-type]


def test_what_was_seen_is_what_the_law_is_given(brains: Brains) -> None:
    """Running replicas are ready with their reports, awaited ones are starting since then, a silent one is unknown."""
    brain = brains.new()
    seen = observation(1000.0, running=("a", "b"), starting_since=(997.0,), start_times_s=(4.0,), num_held=2.0)
    assert brain.num_ready() == 0
    brain.observe(seen)
    status = brain.status()
    assert brain.num_ready() == 2
    assert [(each["state"], each["since"], each["stats"] is None) for each in status["replicas"]] == [
        ("ready", 1000.0, False),
        ("ready", 1000.0, True),
        ("starting", 997.0, True),
    ]
    assert (status["num_held"], status["start_times_s"]) == (2, (4.0,))
    terms = status["decision"]["terms"]
    assert (terms["num_ready"], terms["num_starting"], terms["num_unknown"], terms["cold_start_s"]) == (2, 1, 1, 4.0)


def test_the_first_report_brings_the_prior(brains: Brains) -> None:
    """What a replica expects of its own steps is believed until steps have been measured."""
    brain = brains.new()
    brain.observe(observation(1000.0, running=(), numbers={}, starting_since=(1000.0,)))
    brain.observe(observation(1001.0))
    assert brain.status()["decision"]["terms"]["step_base_s"] == pytest.approx(COST.base_s)


def test_decisions_can_be_made_again_from_the_record(brains: Brains) -> None:
    """The file holds the inputs: the law gives the same answers on them, in words too."""
    brain = brains.new()
    for second in range(1000, 1090):
        at = float(second)
        load = {"num_requests": 4 * (at - 999), "num_prompt_tokens": 800 * (at - 999), "num_running": 12}
        brain.observe(observation(at, target=2, running=("a", "b"), numbers={key: numbers(at, **load) for key in "ab"}))
    config = replace(autoscaling_config(settings(brains.directory)), cost_prior=COST)
    memory = Memory.fresh(config)
    lines = [json.loads(line) for line in next(brains.directory.glob("*/decisions.jsonl")).read_text().splitlines()]
    assert len(lines) == 90
    for line in lines:
        decision = decide(_snapshot(line["snapshot"]), config, memory)
        memory = decision.memory
        assert (decision.desired, decision.reason) == (line["desired"], line["reason"])
    assert {line["desired"] for line in lines} != {2}


def _snapshot(values: dict[str, object]) -> Snapshot:
    """A snapshot as the record keeps it."""
    fields: dict[str, object] = dict(values)
    replicas = []
    for each in fields.pop("replicas"):  # type: ignore[attr-defined]
        report = each.pop("stats")
        kept = None if report is None else ReplicaStats(**{**report, "steps": StepTotals(**report["steps"])})
        replicas.append(Replica(**{**each, "state": ReplicaState(each["state"]), "stats": kept}))
    return Snapshot(
        at=fields["at"],  # type: ignore[arg-type]
        replicas=tuple(replicas),
        ingress=IngressStats(**fields["ingress"]),  # type: ignore[arg-type]
        limits=EngineLimits(**fields["limits"]),  # type: ignore[arg-type]
        start_times_s=tuple(fields["start_times_s"]),  # type: ignore[arg-type]
    )


def test_what_was_learned_survives_a_restart(brains: Brains) -> None:
    """Costs, start times, numbers: the next brain begins where the last one stopped."""
    before = brains.new()
    for second in range(1000, 1100):
        load = {"num_requests": second - 999, "num_prompt_tokens": 50 * (second - 999)}
        before.observe(observation(float(second), numbers={"a": numbers(second, **load)}, start_times_s=(3.0,)))
    old = before.status()
    brains.close()
    after = brains.new()
    after.observe(observation(1101.0))
    new = after.status()
    assert new["num_decisions"] > 90
    assert new["start_times_s"] == (3.0,) * 16
    assert new["cost"]["replica_s"] >= 90.0
    learned = "prompt_tokens_per_request"
    assert new["decision"]["terms"][learned] == pytest.approx(old["decision"]["terms"][learned], rel=0.2)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"meter": {}, "start_times_s": [], "number": 1, "num_fallbacks": 0, "memory": "x"}']
)
def test_a_memory_that_cannot_be_read_is_not_used(brains: Brains, text: str) -> None:
    """The fleet must follow its load whatever stands on disk."""
    directory = state_directory_of(settings(brains.directory))
    directory.mkdir(parents=True)
    (directory / "memory.json").write_text(text)
    assert brains.new().observe(observation(1000.0)).desired >= 1


def test_a_memory_of_another_bound_is_not_used(brains: Brains) -> None:
    """It has a book for each replica that there may be."""
    brains.new().observe(observation(1000.0))
    assert brains.new(HEADCOUNT_MAX_REPLICAS="3").observe(observation(1001.0)).desired in {1, 2, 3}


def test_a_disk_that_is_full_does_not_stop_the_fleet(brains: Brains) -> None:
    """What cannot be kept is lost, and the answer still comes."""
    brain = brains.new()
    directory = state_directory_of(settings(brains.directory))
    (directory / "memory.draft").mkdir()
    assert brain.observe(observation(1000.0)).desired >= 1


def test_the_first_replica_from_zero_is_on_record(brains: Brains) -> None:
    """Serve starts it without asking; a reader of the record must not wonder where it came from."""
    brain = brains.new(HEADCOUNT_MIN_REPLICAS="0")
    brain.observe(observation(1000.0, target=0, running=(), numbers={}))
    brain.observe(observation(1001.0, target=1))
    first, waking, then = brain.decisions()
    assert (first["desired"], waking["reason"], waking["source"], then["current"]) == (0, WAKING, "serve", 1)
    assert [each["number"] for each in brain.decisions()] == [1, 2, 3]
    assert [each["source"] for each in brain.decisions(only_changes=True)] == ["serve"]


def test_new_settings_are_followed_and_nothing_is_forgotten(brains: Brains) -> None:
    """A deployment with other settings finds the brain of the one before."""
    brain = brains.new(HEADCOUNT_MAX_REPLICAS="3")
    brain.observe(observation(1000.0, start_times_s=(4.0,)))
    variables = {
        "HEADCOUNT_RUNNER": "synthetic",
        "HEADCOUNT_MIN_REPLICAS": "5",
        "HEADCOUNT_MAX_REPLICAS": "6",
        "HEADCOUNT_STATE_DIR": str(brains.directory),
    }
    brain.configure(variables)
    assert brain.observe(observation(1001.0)).desired == 5
    assert brain.status()["start_times_s"] == (4.0,)
    assert brain.status()["num_decisions"] == 2


def test_prices_become_replica_seconds(brains: Brains) -> None:
    """A miss at 0.1 where an hour costs 3: two minutes of a replica."""
    assert autoscaling_config(settings(brains.directory)).replica_s_per_miss == 30.0
    priced = settings(brains.directory, price_per_replica_hour=3.0, price_per_miss=0.1)
    assert autoscaling_config(priced).replica_s_per_miss == pytest.approx(120.0)
