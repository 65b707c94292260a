"""Forecast, backlog and holds: the three terms of the law, each on its own."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.autoscaling.backlog import Backlog
from service.autoscaling.cost_model import Mix, capacity
from service.autoscaling.forecast import Arrivals, Demand, needed_replicas
from service.autoscaling.holds import Holds, Prices, Spell
from service.autoscaling.signals import EngineLimits
from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost

COST = StepCost(base_s=0.025, per_sequence_s=5e-4, per_prefill_token_s=1e-4, per_context_token_s=1e-7)
CARRIED = capacity(COST, Mix(1000.0, 1000.0, 200.0), Slo(), EngineLimits())
PRICES = Prices(cold_start_s=10.0, slack_s=2.0, per_miss=30.0)


def observed(rates: list[float], ahead_s: float = 10.0) -> Demand:
    demand = Demand.fresh()
    for rate in rates:
        demand = demand.observe(Arrivals(1.0, rate, 1000.0 * rate), CARRIED, ahead_s)
    return demand


def test_steady_arrivals_come_to_their_work() -> None:
    """Once outputs have built up, demand is rate × work of a request."""
    demand = observed([5.0] * 150)
    assert demand.mean_work(60) == pytest.approx(5.0 * CARRIED.work_s, rel=0.01)
    assert demand.mean_requests(60) == pytest.approx(5.0)
    assert demand.trend(60.0) == pytest.approx(0.0, abs=1e-3)


def test_outputs_are_reckoned_with_one_cold_start_ahead() -> None:
    """Requests that just began to come count with the outputs they are going to need, the more the longer a start."""
    rates = [0.0] * 60 + [10.0] * 30
    soon, later = (observed(rates, ahead_s).last_work for ahead_s in (0.1, 60.0))
    assert soon < later < 10.0 * CARRIED.work_s * 1.01


def test_a_ramp_has_a_trend_and_a_fall_has_none() -> None:
    """Only growth is acted on ahead of time."""
    ramp = [0.1 * second for second in range(120)]
    assert observed(ramp).trend(60.0) == pytest.approx(0.8 * 0.1 * CARRIED.work_s, rel=0.2)
    assert observed(ramp[::-1]).trend(60.0) == 0.0


@given(st.lists(st.floats(0.0, 50.0), min_size=60, max_size=60), st.floats(0.5, 5.0))
def test_the_need_serves_every_second_in_time(work: list[float], slack_s: float) -> None:
    """A fleet of the need, or the load of the longest span, never queues work for longer than the slack in the spans
    that are looked at."""
    need = needed_replicas(np.array(work), slack_s)
    for span in (1, 2, 3, 5, 8, 13, 21, 34, 55):
        assert sum(work[-span:]) <= need * (span + slack_s) * (1 + 1e-9) + 1e-9


def test_a_pause_counts_as_its_average() -> None:
    """Ten seconds in one report are ten seconds of a tenth each."""
    demand = Demand.fresh().observe(Arrivals(10.0, 50.0, 50_000.0), CARRIED, 1.0)
    assert demand.requests[-10:] == pytest.approx([5.0] * 10)
    assert np.isnan(demand.requests[-11])


def drained_step_by_step(backlog: Backlog, joins_s: list[float], step_s: float = 0.01) -> float:
    queue, at = backlog.queued, 0.0
    while at < 2000.0:
        count = sum(join <= at for join in joins_s)
        if queue <= backlog.slack_s * max(0.5, count):
            return at
        queue += (backlog.work - count) * step_s
        at += step_s
    return at


@pytest.mark.parametrize(
    ("queued", "work", "joins_s"),
    [(30.0, 2.0, [0, 0, 0, 0]), (30.0, 2.0, [0, 0, 5, 5, 20]), (5.0, 0.0, [3]), (80.0, 3.0, [0, 1, 2, 3, 4, 5])],
)
def test_a_queue_is_gone_when_the_fluid_says(queued: float, work: float, joins_s: list[float]) -> None:
    """The closed form agrees with small steps."""
    backlog = Backlog(queued, work, 10.0, 2.0)
    assert backlog.drained_in_s(joins_s) == pytest.approx(drained_step_by_step(backlog, joins_s), abs=0.05)


def test_nothing_is_started_for_a_queue_that_drains_before() -> None:
    """Four replicas drain it in seconds; more would come in a minute."""
    backlog = Backlog(queued=20.0, work=1.0, arrivals=10.0, slack_s=2.0)
    assert backlog.cheapest([0.0] * 4 + [60.0] * 8, base=2, per_miss=30.0) == 4


def test_a_queue_that_never_drains_gets_what_it_takes() -> None:
    """More than the demand alone, as each second costs misses."""
    backlog = Backlog(queued=60.0, work=4.0, arrivals=10.0, slack_s=2.0)
    assert backlog.cheapest([0.0] * 4 + [10.0] * 20, base=5, per_miss=30.0) > 6
    assert backlog.cheapest([0.0] * 4 + [10.0] * 20, base=5, per_miss=0.01) == 5


def run(holds: Holds, need: float, seconds: int, arrivals: float = 10.0) -> Holds:
    for _ in range(seconds):
        holds = holds.observe(Spell(need, need, arrivals, 1.0), PRICES)
    return holds


def test_a_level_is_held_as_long_as_its_absence_cost() -> None:
    """After one burst to 4 replicas its levels stay; their hold is the price, at most, and it ends."""
    holds = run(run(run(Holds.fresh(6), 0.5, 100), 4.0, 60), 0.5, 60)
    assert holds.num_held(0.0, 10.0) == 4
    hold_s = holds.hold_of(4, 0.0, 10.0)
    assert 10.0 < hold_s <= holds.price_of(4) * 1.06
    assert run(holds, 0.5, int(hold_s) + 1).num_held(0.0, 10.0) < 4


def test_what_nobody_would_have_missed_is_let_go_after_a_cold_start() -> None:
    """Without arrivals to miss, the price of absence is the start alone."""
    holds = run(run(run(Holds.fresh(6), 0.5, 100), 3.0, 60, arrivals=0.0), 0.5, 15, arrivals=0.0)
    assert holds.price_of(3) == pytest.approx(10.0)
    assert holds.num_held(0.0, 10.0) == 1


def test_long_gaps_teach_to_let_go() -> None:
    """A level whose gaps outlast its price is released at once, one whose gaps are short is kept through them."""
    holds = {gap: Holds.fresh(3) for gap in (40, 2000)}
    for gap, _ in itertools.product(holds, range(6)):
        holds[gap] = run(run(holds[gap], 2.0, 30, arrivals=1.0), 0.5, gap, arrivals=1.0)
    assert holds[40].hold_of(2, 0.0, 10.0) > 40.0
    assert holds[2000].hold_of(2, 0.0, 10.0) == pytest.approx(10.0)


def test_a_level_without_a_price_is_held_for_the_prior() -> None:
    """What is there at the beginning stays for `prior_s`; what never was is not asked for."""
    holds = run(Holds.fresh(6, num_present=4, start_s=10.0), 0.5, 100)
    assert holds.num_held(500.0, 10.0) == 4
    assert holds.num_held(50.0, 10.0) == 1


def test_levels_below_are_paid_by_those_above() -> None:
    """The fourth level may stay for long, but not at the expense of two below it that nobody would hold."""
    holds = run(Holds.fresh(6), 1.0, 100)
    idle_s = np.array([0.0, 90.0, 90.0, 90.0, 1e9, 1e9])

    def num_held(*hold_s: float) -> int:
        books = replace(holds, idle_s=idle_s, price=np.ones(6), hold_s=np.array([*hold_s, 0.0, 0.0]))
        return books.num_held(0.0, 10.0)

    assert num_held(10.0, 10.0, 10.0, 300.0) == 4
    assert num_held(10.0, 10.0, 10.0, 100.0) == 1
    assert num_held(10.0, 100.0, 10.0, 100.0) == 2


def test_where_the_late_are_refused_only_the_excess_is_missed() -> None:
    """A burst of twice the fleet costs half of its requests, and not all of those behind the queue."""
    prices = replace(PRICES, refuses_late=True)
    spells = [Spell(need, need, 10.0, 1.0) for need in (0.5,) * 100 + (2.0,) * 9 + (0.5,) * 20]
    refusing = queueing = Holds.fresh(2)
    for spell in spells:
        refusing, queueing = refusing.observe(spell, prices), queueing.observe(spell, PRICES)
    assert refusing.price_of(2) - 10.0 == pytest.approx(30.0 * 0.5 * 10.0 * 7, rel=0.1)
    assert queueing.price_of(2) > refusing.price_of(2)


def test_fleets_that_were_not_are_judged_by_the_last_minute() -> None:
    """Two replicas serve two replicas of work in time; one of them misses most of it."""
    demand = Demand(np.full(180, 2.0), np.full(180, 5.0), np.full(180, np.nan))
    assert demand.misses(2, 2.0) == 0.0
    assert 250.0 < demand.misses(1, 2.0) <= 300.0
