"""Numbers are what their formulas say, and their intervals cover what they claim to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.histogram import BUCKETS, GROUPS, GapHistogram, quantiles
from loadtest.measures import (
    counts_for_slo,
    gap_cv,
    gap_latency,
    is_good,
    jain,
    latencies,
    latency,
    share_interval,
    wilson,
)
from loadtest.records import Outcome, Record
from loadtest.spec import Slo
from tests.loadtest.strategies import records


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=300))
@settings(deadline=None, max_examples=30)
def test_quantiles_are_numpys(values: list[float]) -> None:
    """Every quantile that is given is numpy's, lies in its interval, and is absent with too few values."""
    found = latency(values)

    assert found.count == len(values)
    for quantile, level in ((found.p50, 0.5), (found.p90, 0.9), (found.p99, 0.99), (found.p99_9, 0.999)):
        if len(values) * (1 - level) < 1 - 1e-9:
            assert quantile is None
        else:
            assert quantile is not None
            assert quantile.value == pytest.approx(np.quantile(values, level))
            assert quantile.low <= quantile.value <= quantile.high


def test_nothing_measured_is_not_zero() -> None:
    """No values: no mean, no maximum, no quantile."""
    found = latency([None, None])

    assert (found.count, found.mean, found.max, found.p50) == (0, None, None, None)


def test_bootstrap_intervals_cover_the_truth() -> None:
    """Over many samples, 95 % of the intervals of the median hold the true one (at least 52 of 60 here)."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(60):
        interval = latency(list(rng.exponential(size=400))).p50
        assert interval is not None
        covered += interval.low <= np.log(2) <= interval.high

    assert covered >= 52


def test_dependence_widens_the_interval() -> None:
    """The same values in clumps say less: the block bootstrap's interval is wider than for shuffled ones."""
    rng = np.random.default_rng(6)
    shuffled = rng.exponential(size=1000)
    in_order = latency(list(np.sort(shuffled))).p50
    mixed = latency(list(shuffled)).p50

    assert in_order is not None
    assert mixed is not None
    assert in_order.high - in_order.low > 1.5 * (mixed.high - mixed.low)


@given(records())
def test_identities_of_one_request(record: Record) -> None:
    """TTFT ≤ E2E; from send = from intention − lateness; TPOT spreads what is left after the first token."""
    if record.ttft_s is None or record.e2e_s is None or record.lateness_s is None:
        return

    assert record.ttft_s <= record.e2e_s
    assert record.ttft_from_send_s == pytest.approx(record.ttft_s - record.lateness_s, abs=1e-9)
    assert record.e2e_from_send_s == pytest.approx(record.e2e_s - record.lateness_s, abs=1e-9)
    if record.tpot_s is not None and record.output_tokens is not None:
        assert record.ttft_s + record.tpot_s * (record.output_tokens - 1) == pytest.approx(record.e2e_s)


def test_latencies_are_of_complete_requests_and_lateness_of_all() -> None:
    """A cut stream has no latency, but the tester was late for it all the same."""
    ok = Record(
        index=0, tenant="a", conversation=0, turn=0, intended_s=1, sent_s=1.5, first_s=2, end_s=3, outcome=Outcome.OK,
        planned_output_tokens=3, output_tokens=3,
    )  # fmt: skip
    cut = Record(
        index=1, tenant="a", conversation=1, turn=0, intended_s=2, sent_s=2.25, first_s=9, end_s=9, outcome=Outcome.CUT,
        planned_output_tokens=3,
    )  # fmt: skip
    found = latencies([ok, cut], GapHistogram(2).counts)

    assert (found.ttft_s.max, found.ttft_from_send_s.max, found.tpot_s.max, found.e2e_s.max) == (1.0, 0.5, 0.5, 2.0)
    assert found.lateness_s.mean == pytest.approx(0.375)


@given(st.lists(st.floats(2e-5, 900), min_size=1, max_size=200), st.integers(1, 4))
def test_histogram_quantiles_are_within_half_a_percent(gaps: list[float], num_workers: int) -> None:
    """The sum of several workers' histograms gives the exact quantile, to a bucket's width."""
    parts = [GapHistogram(len(gaps)) for _ in range(num_workers)]
    for index, gap in enumerate(gaps):
        parts[index % num_workers].add(index, gap)
    total = sum(part.counts for part in parts)
    assert isinstance(total, np.ndarray)

    for level in (0.5, 0.9, 1.0):
        exact = float(np.quantile(gaps, level, method="inverted_cdf"))
        assert quantiles(total.sum(axis=0), [level])[0] == pytest.approx(exact, rel=0.0051)
    assert total.shape == (GROUPS, BUCKETS)


def test_extreme_gaps_stay_in_the_histogram() -> None:
    """Zero and an hour are counted, in the outermost buckets."""
    histogram = GapHistogram(1)
    histogram.add(0, 0.0)
    histogram.add(0, 3600.0)

    assert histogram.counts[0, 0] == histogram.counts[0, -1] == 1
    assert gap_latency(histogram.counts).count == 2


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_wilson_holds_the_share(p: float, n: int) -> None:
    """The interval holds the estimate, stays within 0 and 1, and shrinks with more trials."""
    low, high = wilson(p, n)
    more = wilson(p, 4 * n)

    assert 0 <= low <= p + 1e-9
    assert p - 1e-9 <= high <= 1
    assert more[1] - more[0] <= high - low + 1e-12


def test_wilson_by_hand() -> None:
    """9 of 10: 0.596 to 0.982 (the textbook value)."""
    assert list(wilson(0.9, 10)) == pytest.approx([0.5958, 0.9821], abs=1e-3)


def test_clumped_failures_say_less() -> None:
    """100 bad ones in a row are one event, 100 scattered ones are not."""
    clumped = [True] * 900 + [False] * 100
    scattered = [index % 10 != 0 for index in range(1000)]

    low, high = share_interval(clumped)
    tight_low, tight_high = share_interval(scattered)

    assert high - low > 3 * (tight_high - tight_low)
    assert share_interval([]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([1, 0.5], 0.9), ([], None), ([0, 0], None)]
)
def test_jain(values: list[float], expected: float | None) -> None:
    """1 for equal shares, 1/n for one who has all."""
    assert jain(values) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (None, True),
        (Slo(ttft_s=1.0), True),
        (Slo(ttft_s=0.9), False),
        (Slo(tpot_s=0.5, e2e_s=2.0), True),
        (Slo(tpot_s=0.4), False),
        (Slo(e2e_s=1.9), False),
    ],
)
def test_good_is_complete_within_every_limit(slo: Slo | None, good: bool) -> None:
    """The limits are inclusive, and each one counts."""
    record = Record(
        index=0, tenant="a", conversation=0, turn=0, intended_s=1, sent_s=1, first_s=2, end_s=3, outcome=Outcome.OK,
        planned_output_tokens=3, output_tokens=3,
    )  # fmt: skip

    assert is_good(record, slo) is good
    record.outcome = Outcome.CUT
    assert not is_good(record, slo)


def test_what_counts_for_the_slo() -> None:
    """Failures count against it; leaving as planned, skipping and stopping do not."""
    record = Record(index=0, tenant="a", conversation=0, turn=0, intended_s=0, planned_output_tokens=1)
    counted = set()
    for outcome in Outcome:
        record.outcome = outcome
        if counts_for_slo(record):
            counted.add(outcome)

    assert counted == set(Outcome) - {Outcome.DISCONNECTED, Outcome.SKIPPED, Outcome.UNFINISHED}


def test_gap_cv_of_too_little_is_unknown() -> None:
    """One gap does not vary, and simultaneous arrivals have no mean gap."""
    assert gap_cv([0.0, 1.0]) is None
    assert gap_cv([1.0, 1.0, 1.0]) is None
    assert gap_cv([0.0, 1.0, 2.0]) == 0.0
