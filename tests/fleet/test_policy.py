"""The policy in Serve's controller: reads the brain's last answer, and does without when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext

from service.fleet.observation import Answer, Observation
from service.fleet.policy import FALLBACK_BATCH, ReplicaPolicy

DEPLOYMENT = DeploymentID(name="Replica", app_name="headcount")
REPLICA = ReplicaID(unique_id="abc", deployment_id=DEPLOYMENT)


class Point:
    def __init__(self, value: float) -> None:
        self.value = value


class Adviser:
    """Answers what a test says."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.answer: Answer | None = None
        self.told: list[Observation] = []

    def tell(self, observation: Observation) -> None:
        self.told.append(observation)


class World:
    """A policy with its adviser and its clock."""

    def __init__(self) -> None:
        self.at = 100.0
        self.policy = ReplicaPolicy(variables={"HEADCOUNT_PORT": "1"}, advisor=self._advisor, clock=lambda: self.at)

    def _advisor(self, variables: Mapping[str, str]) -> Adviser:
        self.adviser = Adviser(variables)
        return self.adviser

    def answer(self, desired: int, *, target: int = 2, age_s: float = 0.0, batch: float = 4.0) -> None:
        self.adviser.answer = Answer(at=self.at - age_s, target=target, desired=desired, batch=batch)

    def ask(self, target: int = 1, **changes: Any) -> int:
        return self.policy(context(target, **changes))[0]


def context(target: int, *, num_requests: float = 0.0, num_queued: float | None = 0.0, **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "deployment_id": DEPLOYMENT,
        "deployment_name": "Replica",
        "app_name": "headcount",
        "current_num_replicas": 1,
        "target_num_replicas": target,
        "running_replicas": [REPLICA],
        "total_num_requests": num_requests,
        "total_queued_requests": num_queued,
        "aggregated_metrics": {},
        "raw_metrics": {"num_running": {REPLICA: [Point(1.0), Point(3.0)]}, "silent": {REPLICA: []}},
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 9,
        "policy_state": {},
        "last_scale_up_time": None,
        "last_scale_down_time": None,
        "current_time": None,
        "config": None,
    }
    return AutoscalingContext(**{**fields, **changes})


@pytest.fixture
def world() -> World:
    made = World()
    made.ask()
    return made


def test_the_brain_is_told_what_serve_knows(world: World) -> None:
    """The last report of each replica, who runs, and how many there should be."""
    told = world.adviser.told[0]
    name = REPLICA.to_full_id_str()
    assert (told.at, told.target, told.running, told.numbers) == (100.0, 1, (name,), {name: {"num_running": 3.0}})
    assert world.adviser.variables == {"HEADCOUNT_PORT": "1"}


def test_the_brain_is_told_once_a_second(world: World) -> None:
    """Serve asks ten times as often."""
    for tick in range(1, 31):
        world.at = 100.0 + 0.1 * tick
        world.ask()
    assert len(world.adviser.told) == 4


def test_a_fresh_answer_is_followed_up_and_down(world: World) -> None:
    """The number is the brain's."""
    world.answer(5)
    assert world.ask(target=2) == 5
    world.answer(1)
    assert world.ask(target=2) == 1


def test_what_was_said_before_serve_acted_by_itself_takes_nothing_away(world: World) -> None:
    """At zero Serve starts a replica for a request without asking: the answer "none" is older than that."""
    world.answer(0, target=0)
    assert world.ask(target=1) == 1
    world.answer(3, target=0)
    assert world.ask(target=1) == 3
    world.answer(0, target=1)
    assert world.ask(target=1) == 0


def test_a_silent_brain_is_replaced_by_the_number_of_requests(world: World) -> None:
    """By the batch that the brain last knew, upwards only."""
    world.answer(2, age_s=60.0, batch=4.0)
    assert world.ask(target=2, num_requests=17.0) == 5
    assert world.ask(target=6, num_requests=17.0) == 6
    assert world.ask(target=6, num_requests=0.0) == 6


def test_a_brain_that_never_spoke_is_replaced_too() -> None:
    """With a batch that any model carries."""
    assert World().ask(target=1, num_requests=3 * FALLBACK_BATCH) == 3


def test_an_answer_from_a_clock_ahead_is_not_fresh_for_ever(world: World) -> None:
    """A clock that is set back makes old answers look new; they are not followed."""
    world.answer(9, age_s=-3600.0)
    assert world.ask(target=2) == 2


def test_being_without_an_answer_is_reported(world: World) -> None:
    """So that it can be counted and alerted on."""
    world.at += 1.0
    world.ask()
    world.answer(1)
    world.at += 1.0
    world.ask()
    assert [told.num_fallbacks for told in world.adviser.told] == [1, 1, 0]


def test_nothing_that_fails_reaches_serve(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An exception would stop the scaling of every other application; the fleet stays as it is, and it is said once."""
    for _ in range(3):
        assert world.ask(target=3, running_replicas=[None]) == 3
    assert len([line for line in caplog.records if "failed" in line.message]) <= 1
