"""The law: bounded, monotone, steady, deterministic, unbreakable, and able to say why."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.memory import Memory
from service.autoscaling.policy import Decision, decide
from service.autoscaling.signals import Replica, ReplicaState, Snapshot
from service.autoscaling.simulator.fleet import Fleet, FleetConfig, FleetView
from service.autoscaling.simulator.headcount import Headcount
from service.autoscaling.simulator.made_traces import Shape, make
from tests.autoscaling.strategies import broken_snapshots, ready, snapshot, stats

CONFIG = AutoscalingConfig(max_replicas=12, cold_start_prior_s=10.0)


def watched(rate: float, seconds: int, num_replicas: int, config: AutoscalingConfig = CONFIG) -> Decision:
    """The decision after `seconds` of `rate` requests/s of 1000 prompt tokens each, evenly over the replicas."""
    memory = Memory.fresh(config)
    for second in range(seconds + 1):
        count = round(rate * second / num_replicas)
        reports = [stats(second, num_requests=count, num_prompt_tokens=1000 * count) for _ in range(num_replicas)]
        decision = decide(snapshot(second, *(ready(i, r) for i, r in enumerate(reports))), config, memory)
        memory = decision.memory
    return decision


@settings(max_examples=150, deadline=None)
@given(st.lists(broken_snapshots(), min_size=1, max_size=8), st.integers(0, 3), st.integers(3, 9))
def test_whatever_it_is_told_it_answers_within_bounds(snapshots: list[Snapshot], low: int, high: int) -> None:
    """Missing, stale, negative and NaN reports and jumping clocks: no exception, a number in bounds, a reason; and the
    memory survives JSON."""
    config = AutoscalingConfig(min_replicas=low, max_replicas=high)
    memory = Memory.fresh(config)
    for seen in snapshots:
        decision = decide(seen, config, memory)
        assert low <= decision.desired <= high
        assert decision.reason
        memory = Memory.from_json(decision.memory.to_json(), config)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 20.0), st.integers(61, 90), st.integers(1, 8))
def test_the_same_input_gives_the_same_answer(rate: float, seconds: int, num_replicas: int) -> None:
    """Nothing but its arguments enters a decision, and it changes none of them."""
    first, second = watched(rate, seconds, num_replicas), watched(rate, seconds, num_replicas)
    assert (first.desired, first.reason) == (second.desired, second.reason)
    assert first.memory.to_json() == second.memory.to_json()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.0, 2.0, 6.0, 15.0]),
    st.tuples(st.integers(0, 400), st.integers(0, 400)),
    st.tuples(st.integers(0, 300), st.integers(0, 300)),
    st.tuples(st.integers(0, 400_000), st.integers(0, 400_000)),
)
def test_more_load_never_means_fewer_replicas(
    rate: float, held: tuple[int, int], running: tuple[int, int], queued: tuple[int, int]
) -> None:
    """With the same past, more requests held, running or queued never lower the answer."""
    memory = watched(rate, 70, 4).memory
    count = round(rate * 71 / 4)

    def answer(which: int) -> int:
        num_held, num_running, num_queued = sorted(held)[which], sorted(running)[which], sorted(queued)[which]
        report = stats(
            71.0,
            num_requests=count,
            num_prompt_tokens=1000 * count,
            num_running=num_running,
            num_waiting=num_queued > 0,
            num_prefill_left=num_queued,
        )
        replicas = [ready(i, report) for i in range(4)]
        seen = snapshot(71.0, *replicas, num_held=num_held, num_held_prompt_tokens=1000 * num_held)
        return decide(seen, CONFIG, memory).desired

    assert answer(0) <= answer(1)


@pytest.mark.parametrize("rate", [0.5, 3.0, 11.0])
def test_constant_load_settles_and_stays(rate: float) -> None:
    """Evenly spaced requests: after a while the answer never changes again, and meets them all."""
    workload = make("even", Shape(duration_s=2200, rate=lambda _: rate))
    even = [
        r._replace(arrival_at=i / rate, num_prompt_tokens=1000, num_output_tokens=200)
        for i, r in enumerate(workload.requests)
    ]
    config = replace(CONFIG, cold_start_prior_s=5.0)
    outcome = Fleet(FleetConfig(cold_start_s=5.0, initial_replicas=4), Headcount(config)).run(
        replace(workload, requests=tuple(even))
    )
    settled = [sample.desired for sample in outcome.samples if 1800.0 < sample.at < even[-1].arrival_at]
    assert len(set(settled)) == 1


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (snapshot(71.0, *(ready(i, None) for i in range(6))), "6 sources are silent"),
        (snapshot(71.0, *(ready(i, stats(60.0)) for i in range(6))), "6 sources are silent"),
        (replace(snapshot(71.0, *(ready(i, stats(71.0)) for i in range(6))), ingress=None), "1 source is silent"),
    ],
)
def test_the_unknown_is_not_zero(seen: Snapshot, why: str) -> None:
    """Missing and stale reports, of replicas or of the ingress, keep the fleet as large as it is."""
    decision = decide(seen, CONFIG, watched(0.0, 70, 6).memory)
    assert decision.desired == 6
    assert why in decision.reason


@pytest.mark.parametrize("at", [-1e6, 69.9, 1e6, float("nan")])
def test_a_clock_that_steps_teaches_nothing(at: float) -> None:
    """Backwards, far forwards or no number at all: the fleet stays, and the second after that is an ordinary one."""
    before = watched(6.0, 200, 4)
    report = stats(at, num_requests=300, num_prompt_tokens=300_000)
    stepped = decide(snapshot(at, *(ready(i, report) for i in range(4))), CONFIG, before.memory)
    assert stepped.desired == max(4, before.desired)
    assert stepped.memory.demand.work == pytest.approx(before.memory.demand.work, nan_ok=True)


def test_a_fresh_law_does_not_shrink_what_it_has_not_watched() -> None:
    """A brain without memory keeps the replicas it finds, for five minutes if nobody needs them."""
    assert watched(0.0, 59, 6).desired == 6
    assert "watched too briefly" in watched(0.0, 59, 6).reason
    assert watched(0.0, 250, 6).desired == 6
    assert watched(0.0, 400, 6).desired == 1


def test_a_replica_that_never_starts_is_replaced() -> None:
    """After three cold starts another one is asked for, on top."""
    memory = watched(6.0, 200, 3).memory

    def answer(since: float) -> Decision:
        stuck = Replica(replica_id="stuck", state=ReplicaState.STARTING, since=since)
        replicas = [ready(i, stats(201.0, num_requests=402, num_prompt_tokens=402_000)) for i in range(3)]
        return decide(snapshot(201.0, *replicas, stuck), CONFIG, memory)

    assert answer(since=160.0).desired == answer(since=195.0).desired + 1
    assert "take too long to start" in answer(since=160.0).reason


def test_a_held_request_wakes_a_fleet_of_none() -> None:
    """From zero, one held request asks for a replica and a crowd of them for as many as it deserves."""
    config = replace(CONFIG, min_replicas=0)
    memory = Memory.fresh(config)
    for second in range(100):
        decision = decide(snapshot(second), config, memory)
        memory = decision.memory
    assert decision.desired == 0
    assert decide(snapshot(100, num_held=1, num_held_prompt_tokens=500), config, memory).desired == 1
    assert decide(snapshot(100, num_held=300, num_held_prompt_tokens=300_000), config, memory).desired > 4


def test_zero_is_reached_only_when_the_rent_outweighs_the_next_wait() -> None:
    """After the last request the last replica stays for a while and then goes."""
    config = AutoscalingConfig(min_replicas=0, cold_start_prior_s=5.0)
    workload = make("stops", Shape(duration_s=900, rate=lambda second: 2.0 if second < 300 else 0.0))
    end = workload.requests[-1]._replace(arrival_at=3000.0)
    workload = replace(workload, requests=(*workload.requests, end))
    outcome = Fleet(FleetConfig(cold_start_s=5.0, initial_replicas=1), Headcount(config)).run(workload)
    desired = {int(sample.at): sample.desired for sample in outcome.samples}
    assert desired[320] == 1
    assert desired[2900] == 0
    assert outcome.finished[-1].first_token_at == pytest.approx(3006.0, abs=2.0)


def test_what_it_costs_to_decide_is_said_in_words() -> None:
    """The reason names counts, work and need; the terms carry the numbers."""
    decision = watched(12.0, 100, 2)
    assert decision.reason.startswith(f"2 → {decision.desired}: ")
    assert "replicas of work now" in decision.reason
    assert decision.terms["desired"] == decision.desired > 2
    assert decision.terms["need"] > 2.0
    assert decision.terms["requests_per_s"] == pytest.approx(12.0, rel=0.2)


def test_a_long_prompt_delays_nobody_where_nothing_waits() -> None:
    """The same prompt tokens left are a backlog only where a request stands behind them."""
    memory = watched(6.0, 200, 3).memory

    def backlog(num_waiting: int) -> float:
        report = stats(
            201.0, num_requests=402, num_prompt_tokens=402_000, num_waiting=num_waiting, num_prefill_left=90_000
        )
        return decide(snapshot(201.0, *(ready(i, report) for i in range(3))), CONFIG, memory).terms["backlog"]

    assert backlog(0) == 0
    assert backlog(1) > 3


def test_every_decision_knows_its_neighbours() -> None:
    """One replica less would have been late in a minute of full load, one more would not have been."""
    steady = watched(12.0, 200, 6)
    assert steady.terms["misses_with_one_more"] == 0.0
    crowded = replace(CONFIG, max_replicas=3)
    bound = watched(12.0, 200, 3, crowded).terms
    assert bound["misses_with_one_less"] > bound["misses_with_one_more"] >= 0.0


def test_the_forecast_is_held_against_what_came() -> None:
    """Nothing to compare at first; near zero under steady load; what a step brought is an error of its size."""
    assert math.isnan(watched(6.0, 5, 3).terms["forecast_error"])
    before = watched(6.0, 200, 3)
    assert before.terms["forecast_error"] == pytest.approx(0.0, abs=0.2)
    report = stats(201.0, num_requests=440, num_prompt_tokens=440_000)
    after = decide(snapshot(201.0, *(ready(i, report) for i in range(3))), CONFIG, before.memory)
    assert after.terms["forecast_error"] == pytest.approx(after.terms["need"] - before.terms["need"], abs=0.2)
    assert after.terms["forecast_error"] > 1.0


def test_a_level_that_returns_is_kept_and_one_that_does_not_is_let_go() -> None:
    """Bursts every two minutes keep their replicas between them; when they end for good the replicas go."""
    shape = Shape(duration_s=3000, rate=lambda second: 12.0 if second < 1200 and second % 120 < 40 else 0.5)
    levels: list[int] = []

    class Recorder(Headcount):
        def desired(self, view: FleetView) -> int:
            levels.append(super().desired(view))
            return levels[-1]

    law = Recorder(AutoscalingConfig(cold_start_prior_s=15.0, replica_s_per_miss=3.0))
    Fleet(FleetConfig(cold_start_s=15.0, initial_replicas=4), law).run(make("bursts", shape))
    assert min(levels[700:1200]) >= 4
    assert max(levels[2900:3000]) <= 2
