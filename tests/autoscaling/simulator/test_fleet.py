"""The simulated fleet: nothing is lost, whatever comes and goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.signals import ReplicaState
from service.autoscaling.simulator.baselines import Static
from service.autoscaling.simulator.faults import Faults
from service.autoscaling.simulator.fleet import Fleet, FleetConfig, FleetView
from service.autoscaling.simulator.headcount import Headcount
from service.autoscaling.simulator.made_traces import Shape, make
from service.autoscaling.simulator.measures import summarise
from service.autoscaling.simulator.outcome import Outcome
from service.autoscaling.simulator.workload import SimulatedRequest, Workload


class Scripted:
    """As many replicas as a function of the second says; keeps the views."""

    def __init__(self, desired_at: Callable[[int], int]) -> None:
        self._desired_at = desired_at
        self.views: list[FleetView] = []

    def desired(self, view: FleetView) -> int:
        self.views.append(view)
        return self._desired_at(int(view.snapshot.at))


STEADY = make("steady", Shape(duration_s=120, rate=lambda _: 6.0))
CONFIG = FleetConfig(cold_start_s=5.0, initial_replicas=4)


def ends_of(outcome: Outcome) -> list[tuple[float, float | None, float | None]]:
    return sorted((s.request.arrival_at, s.first_token_at, s.last_token_at) for s in outcome.finished)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 8), min_size=4, max_size=4))
def test_scaling_loses_no_request(counts: list[int]) -> None:
    """However wildly replicas come and go, zero included, every request ends once and none is cut."""
    outcome = Fleet(CONFIG, Scripted(lambda second: counts[second // 20 % 4] if second < 200 else 2)).run(STEADY)
    assert len(outcome.finished) == len(STEADY.requests)
    assert len({id(s) for s in outcome.finished}) == len(STEADY.requests)
    assert outcome.num_cut == outcome.num_refused == 0
    assert all(s.last_token_at is not None for s in outcome.finished)


def test_the_same_run_twice_is_the_same_to_the_last_digit() -> None:
    """A run depends on its arguments only."""
    runs = [Fleet(CONFIG, Headcount(AutoscalingConfig())).run(STEADY) for _ in range(2)]
    assert ends_of(runs[0]) == ends_of(runs[1])
    assert runs[0].samples == runs[1].samples


def test_a_draining_replica_gets_nothing_new_and_is_paid_until_it_is_empty() -> None:
    """Scale-down takes effect for the router at once and for the bill when the last stream has ended."""
    controller = Scripted(lambda second: 4 if second < 60 else 1)
    outcome = Fleet(CONFIG, controller).run(STEADY)
    draining = [
        (view.snapshot.at, replica.stats)
        for view in controller.views
        for replica in view.snapshot.replicas
        if replica.state is ReplicaState.DRAINING
    ]
    assert {stats.num_waiting for _, stats in draining if stats} == {0}
    samples = {sample.at: sample for sample in outcome.samples}
    assert samples[62.0].num_ready == 1
    assert samples[62.0].num_replicas > 1
    assert samples[119.0].num_replicas == 1


def test_requests_wait_in_front_while_there_is_no_replica() -> None:
    """At zero replicas requests are held, counted, and served as soon as one is ready."""
    workload = Workload.of("one", [SimulatedRequest(0.0, 10, 2), SimulatedRequest(3.0, 100, 2)])
    controller = Scripted(lambda second: 0 if second < 10 else 1)
    outcome = Fleet(FleetConfig(cold_start_s=5.0, initial_replicas=0), controller).run(workload)
    ingress = controller.views[5].snapshot.ingress
    assert ingress is not None
    assert (ingress.num_held, ingress.num_held_prompt_tokens) == (2, 110)
    first = min(s.first_token_at or 0.0 for s in outcome.finished)
    assert 14.0 < first < 16.5


def test_no_replica_gets_more_than_it_may_hold() -> None:
    """What exceeds `max_ongoing_requests` of every replica stays in front, where a new replica can take it."""
    workload = Workload.of("rush", [SimulatedRequest(0.001 * i, 500, 50) for i in range(200)])
    controller = Scripted(lambda _: 2)
    Fleet(FleetConfig(initial_replicas=2, max_ongoing_requests=20), controller).run(workload)
    first = controller.views[0].snapshot
    assert all(r.stats is not None and r.stats.num_running + r.stats.num_waiting <= 20 for r in first.replicas)
    assert first.ingress is not None
    assert first.ingress.num_held > 100


def test_a_crash_cuts_the_streams_of_one_replica_and_retries_the_rest() -> None:
    """Requests without a first token survive a crash; each other one is counted as cut; none is forgotten."""
    outcome = Fleet(CONFIG, Static(4), Faults(crashes=((50.5, 0),))).run(STEADY)
    assert outcome.num_cut > 0
    assert outcome.num_cut + len(outcome.finished) == len(STEADY.requests)
    assert summarise(outcome, CONFIG, 30.0).num_cut == outcome.num_cut


def test_a_request_larger_than_the_cache_is_refused() -> None:
    """As the engine does at admission; it is not counted as served."""
    workload = Workload.of("huge", [SimulatedRequest(0.0, 300_000, 1), SimulatedRequest(1.0, 10, 1)])
    outcome = Fleet(CONFIG, Static(1)).run(workload)
    assert (outcome.num_refused, len(outcome.finished)) == (1, 1)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(silent=((60.0, 110.0),)),
        Faults(stuck=frozenset({5, 6})),
        Faults(crashes=((70.0, 0), (71.0, 1))),
    ],
)
def test_the_law_survives_faults(faults: Faults) -> None:
    """Silence, starts that never end and crashes under load: every request that was not cut is served, soon enough."""
    workload = make("faulty", Shape(duration_s=240, rate=lambda second: 6.0 if second < 60 else 14.0))
    config = FleetConfig(cold_start_s=5.0, initial_replicas=4)
    outcome = Fleet(config, Headcount(AutoscalingConfig(cold_start_prior_s=5.0)), faults).run(workload)
    assert len(outcome.finished) + outcome.num_cut == len(workload.requests)
    late = [s for s in outcome.finished if s.request.arrival_at > 150.0]
    assert summarise(Outcome(workload, late, outcome.samples), config, 30.0, 0.0).slo_attainment > 0.97


def test_silence_never_shrinks_the_fleet() -> None:
    """While no statistics arrive the number of replicas does not fall."""
    workload = make("stop", Shape(duration_s=400, rate=lambda second: 12.0 if second < 100 else 0.2))
    config = FleetConfig(cold_start_s=3.0, initial_replicas=4)
    law = Headcount(AutoscalingConfig(cold_start_prior_s=3.0))
    outcome = Fleet(config, law, Faults(silent=((101.0, 300.0),))).run(workload)
    spoken = [sample.desired for sample in outcome.samples]
    assert spoken[101:299] == sorted(spoken[101:299])
    assert spoken[-1] < spoken[298]


def test_a_controller_that_restarts_under_load_goes_on() -> None:
    """With its memory back from JSON the law decides as if it had never been away."""
    workload = make("load", Shape(duration_s=200, rate=lambda _: 8.0))
    steady = Fleet(CONFIG, Headcount(AutoscalingConfig())).run(workload)
    restarted = Fleet(CONFIG, Headcount(AutoscalingConfig(), restarts=(70.0, 130.0))).run(workload)
    assert restarted.samples == steady.samples


def test_what_waits_too_long_is_turned_away_and_the_rest_is_in_time() -> None:
    """Four times too much for one replica: without the rule nearly all miss, with it the excess does."""
    crowd = make("crowd", Shape(duration_s=200, rate=lambda _: 12.0))
    fleets = [replace(CONFIG, initial_replicas=1, max_wait_s=max_wait_s) for max_wait_s in (math.inf, 1.5)]
    queueing, refusing = (Fleet(fleet, Scripted(lambda _: 1)).run(crowd) for fleet in fleets)
    assert len(refusing.finished) + len(refusing.turned_away) == len(crowd.requests)
    assert not queueing.turned_away
    late, excess = (summarise(outcome, CONFIG, 30.0, 0.0) for outcome in (queueing, refusing))
    assert excess.num_turned_away == len(refusing.turned_away)
    assert excess.num_missed < 0.8 * late.num_missed
    assert excess.num_missed - excess.num_turned_away < 0.1 * len(refusing.finished)


def test_the_held_are_turned_away_too() -> None:
    """No replica until the sixtieth second: who came before the fifty-eighth is not there any more."""
    fleet = replace(CONFIG, initial_replicas=0, max_wait_s=1.5)
    outcome = Fleet(fleet, Scripted(lambda second: 4 if second >= 55 else 0)).run(STEADY)
    assert len(outcome.finished) + len(outcome.turned_away) == len(STEADY.requests)
    assert min(s.request.arrival_at for s in outcome.finished) > 57.0
