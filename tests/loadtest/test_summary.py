"""Counts, groups and series add up to the records they come from."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import summary
from loadtest.records import Outcome, Record
from loadtest.scrape import Snapshot
from loadtest.spec import Slo
from tests.loadtest.strategies import records


def _record(index: int, **values: Any) -> Record:
    base: dict[str, Any] = {
        "index": index, "tenant": "a", "conversation": index, "turn": 0, "planned_output_tokens": 5,
        "intended_s": float(index), "sent_s": float(index), "first_s": index + 0.5, "end_s": index + 1.0,
        "outcome": Outcome.OK, "prompt_tokens": 10, "output_tokens": 5, "num_events": 5,
    }  # fmt: skip
    return Record(**{**base, **values})


@given(st.lists(records(), max_size=30), st.integers(0, 5))
@settings(deadline=None)
def test_every_planned_request_has_one_fate(found: list[Record], missing: int) -> None:
    """The fates of the planned requests add up to them."""
    counts = summary.count(found, len(found) + missing)

    total = counts.ok + counts.failed + counts.disconnected + counts.skipped + counts.unfinished
    assert total == counts.planned == len(found) + missing


@given(st.lists(records(), min_size=1, max_size=40))
@settings(deadline=None)
def test_intervals_lose_nothing(found: list[Record]) -> None:
    """Over all intervals, as many are due, sent and over as there are records, and none is in flight at the end."""
    series = summary.intervals(found, [])

    assert sum(interval.due for interval in series) == len(found)
    assert sum(interval.sent for interval in series) == sum(record.sent_s is not None for record in found)
    assert sum(interval.ok for interval in series) == sum(record.outcome is Outcome.OK for record in found)
    assert series[-1].in_flight == 0
    assert len(series) <= summary.MAX_INTERVALS + 1


def test_intervals_carry_the_servers_numbers() -> None:
    """A snapshot belongs to the stretch it was taken in; elsewhere nothing is known."""
    series = summary.intervals([_record(index) for index in range(3)], [Snapshot(at_s=1.2, running=4, replicas=2)])

    assert [(interval.running, interval.replicas) for interval in series] == [
        (None, None),
        (4, 2),
        (None, None),
        (None, None),
    ]
    assert [interval.in_flight for interval in series] == [1, 1, 1, 0]


def test_rates_are_over_the_schedule_and_until_the_last_answer() -> None:
    """Ten requests over 10 s, the last answer at 19 s."""
    found = [_record(index) for index in range(9)] + [_record(9, end_s=19.0, num_events=1)]
    rates = summary.rates(found, 0.0, 10.0)

    assert (rates.asked_rps, rates.sent_rps) == (1.0, 1.0)
    assert rates.ok_rps == pytest.approx(10 / 19)
    assert rates.output_tokens_per_s == pytest.approx(50 / 19)
    assert rates.tokens_per_event == pytest.approx(50 / 46)
    assert summary.rates(found, 0.0, None).asked_rps is None


@pytest.mark.parametrize(("share", "held"), [(0.5, True), (0.6, False)])
def test_goodput_counts_failures_against_the_slo(share: float, held: bool) -> None:
    """Half good, a quarter slow, a quarter failed; a planned disconnect counts for nothing."""
    found = [
        *(_record(index) for index in range(4)),
        *(_record(index, first_s=index + 0.9) for index in range(4, 6)),
        *(_record(index, outcome=Outcome.CUT) for index in range(6, 8)),
        _record(8, outcome=Outcome.DISCONNECTED),
    ]
    goodput = summary.goodput(found, Slo(ttft_s=0.6, share=share), 0.0, 8.0)

    assert (goodput.met, goodput.of, goodput.share, goodput.is_held) == (4, 8, 0.5, held)
    assert goodput.goodput_rps == 0.5
    assert goodput.share_low is not None
    assert goodput.share_high is not None
    assert goodput.share_low < 0.5 < goodput.share_high


def test_errors_are_grouped_by_what_they_are() -> None:
    """Same outcome, status and code are one group; the most frequent comes first; success is no error."""
    found = [
        _record(0, outcome=Outcome.HTTP, status=429, code="busy", message="wait"),
        _record(1, outcome=Outcome.HTTP, status=500, code=None, message="boom"),
        _record(2, outcome=Outcome.HTTP, status=429, code="busy", message="wait longer"),
        _record(3),
        _record(4, outcome=Outcome.DISCONNECTED),
    ]

    groups = summary.errors(found)

    assert [(group.status, group.code, group.count, group.example) for group in groups] == [
        (429, "busy", 2, "wait"),
        (500, None, 1, "boom"),
    ]


def test_tenants_are_told_apart() -> None:
    """Each tenant's share of good requests and latencies are its own."""
    found = [_record(0), _record(1, outcome=Outcome.CUT), _record(2, tenant="b"), _record(3, tenant="b")]

    rows = summary.tenants(found, None)

    assert [(row.name, row.sent, row.ok, row.service_ratio) for row in rows] == [("a", 2, 1, 0.5), ("b", 2, 2, 1.0)]
    assert rows[1].ttft_p50_s == pytest.approx(0.5)


def test_retries() -> None:
    """Advised, tried again, obeyed and admitted are four different numbers."""
    found = [
        _record(0, outcome=Outcome.HTTP, retry_after_s=1.0, attempts=1),
        _record(1, retry_after_s=2.0, attempts=2, retry_slack_s=0.01),
        _record(2, outcome=Outcome.HTTP, retry_after_s=3.0, attempts=2, retry_slack_s=-0.5),
        _record(3, attempts=1),
    ]

    found_retries = summary.retries(found)

    assert found_retries.model_dump() == {"advised": 3, "advice_p50_s": 2.0, "retried": 2, "obeyed": 1, "admitted": 1}


def test_scatter_is_bounded_and_keeps_the_slowest() -> None:
    """However long the run, the plot stays small and its worst points stay in."""
    found = [_record(index, first_s=index + 0.5 + (10 if index == 77 else 0)) for index in range(5000)]

    points = summary.scatter(found)

    assert len(points) == summary.MAX_SCATTER
    assert max(ttft for _, ttft in points) == pytest.approx(10.5)


def test_cdf_rises_to_one() -> None:
    """From the smallest to the largest value."""
    points = summary.cdf([3.0, None, 1.0, 2.0])

    assert points[0] == (1.0, 0.0)
    assert points[-1] == (3.0, 1.0)
    assert points == sorted(points)
    assert summary.cdf([None]) == []
