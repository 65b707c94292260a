"""What the fleet has cost."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.autoscaling.cost_meter import CostMeter


def test_costs_and_savings() -> None:
    """Two replicas for 10 s, four for 10 s: 60 replica-seconds; four all the time would have been 80."""
    meter = CostMeter()
    for at, current, desired in [(0.0, 2, 2), (10.0, 2, 4), (20.0, 4, 4), (30.0, 4, 1)]:
        meter = meter.observe(at, current, desired)
    assert (meter.replica_s, meter.peak, meter.watched_s) == (100.0, 4, 30.0)
    assert meter.saved_replica_s == 20.0
    assert (meter.num_up, meter.num_down) == (1, 1)


observations = st.tuples(st.floats(allow_nan=True), st.integers(0, 50), st.integers(0, 50))


@given(st.lists(observations, max_size=30))
def test_sums_only_grow(seen: list[tuple[float, int, int]]) -> None:
    """Whatever the clock does, nothing that is counted ever falls."""
    meters = [CostMeter()]
    for at, current, desired in seen:
        meters.append(meters[-1].observe(at, current, desired))
    for before, after in pairwise(meters):
        assert after.replica_s >= before.replica_s
        assert after.saved_replica_s >= before.saved_replica_s - 1e-6
        assert math.isfinite(after.watched_s)


def test_a_pause_is_not_paid_for() -> None:
    """Of a time without a watcher nothing is known."""
    meter = CostMeter().observe(0.0, 3, 3).observe(1000.0, 3, 3)
    assert meter.replica_s == 0.0
