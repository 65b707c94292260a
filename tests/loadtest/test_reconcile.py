"""Both sides' counts are compared for what each side can know."""

from __future__ import annotations

from typing import Any

import pytest

from loadtest.reconcile import histogram_quantile, queue_time, reconcile
from loadtest.records import Outcome, Record
from loadtest.scrape import Snapshot


def _record(outcome: Outcome, **values: Any) -> Record:
    base: dict[str, Any] = {
        "index": 0, "tenant": "a", "conversation": 0, "turn": 0, "intended_s": 0.0, "planned_prompt_tokens": 10,
        "planned_output_tokens": 8,
    }  # fmt: skip
    return Record(**{**base, "outcome": outcome, **values})


WHOLE = _record(Outcome.OK, prompt_tokens=10, output_tokens=8, num_events=8)
BROKEN = _record(Outcome.DISCONNECTED, num_events=3)
REFUSED = _record(Outcome.HTTP, status=429)
BEFORE = Snapshot(at_s=0, requests=100, prompt_tokens=1000, output_tokens=500)


def _after(requests: float, prompt_tokens: float, output_tokens: float) -> Snapshot:
    return Snapshot(
        at_s=9, requests=100 + requests, prompt_tokens=1000 + prompt_tokens, output_tokens=500 + output_tokens
    )


@pytest.mark.parametrize(
    ("records", "after", "agrees"),
    [
        ([WHOLE, WHOLE], _after(2, 20, 16), [True, True, True]),
        ([WHOLE, WHOLE], _after(3, 20, 16), [False, True, True]),
        ([WHOLE, WHOLE], _after(2, 19, 15), [True, False, False]),
        ([WHOLE, REFUSED], _after(1, 10, 8), [True, True, True]),
        ([WHOLE, BROKEN], _after(2, 20, 12), [True, True, True]),
        ([WHOLE, BROKEN], _after(1, 10, 11), [True, True, True]),
        ([WHOLE, BROKEN], _after(2, 20, 10), [True, True, False]),
        ([WHOLE, BROKEN], _after(2, 20, 17), [True, True, False]),
        ([WHOLE, BROKEN], _after(2, 21, 12), [True, False, True]),
    ],
)
def test_agreement(records: list[Record], after: Snapshot, agrees: list[bool]) -> None:
    """Whole requests must agree exactly, broken-off ones within what they may have cost, refused ones cost nothing."""
    rows = reconcile(records, BEFORE, after)

    assert [row.what for row in rows] == ["requests", "prompt_tokens", "output_tokens"]
    assert [row.agrees for row in rows] == agrees


def test_unknown_counters_do_not_disagree() -> None:
    """A server without a counter, or one that was restarted, is not known to differ."""
    rows = reconcile([WHOLE], BEFORE, Snapshot(at_s=9, requests=3, prompt_tokens=1010))

    assert [(row.server, row.agrees) for row in rows] == [(None, None), (10.0, True), (None, None)]
    assert reconcile([WHOLE], None, BEFORE) == []


def test_what_cannot_be_bounded_is_not() -> None:
    """A broken-off request of unknown length may have cost any number of prompt tokens."""
    broken = _record(Outcome.CUT, planned_prompt_tokens=None)

    row = reconcile([broken], BEFORE, _after(1, 123_456, 0))[1]

    assert (row.client_low, row.client_high, row.agrees) == (0, None, True)


def test_a_counter_that_appears_counts_from_zero() -> None:
    """Labelled counters do not exist before their first increase."""
    rows = reconcile([WHOLE], Snapshot(at_s=0), Snapshot(at_s=9, requests=1, prompt_tokens=10, output_tokens=8))

    assert [row.agrees for row in rows] == [True, True, True]


def test_queue_time_is_of_this_run() -> None:
    """The histogram's increase, interpolated as Prometheus does."""
    inf = float("inf")
    before = Snapshot(at_s=0, queue_time_sum_s=50.0, queue_time_buckets=((0.1, 10.0), (1.0, 10.0), (inf, 10.0)))
    after = Snapshot(at_s=9, queue_time_sum_s=54.0, queue_time_buckets=((0.1, 14.0), (1.0, 18.0), (inf, 18.0)))

    found = queue_time(before, after)

    assert found is not None
    assert (found.count, found.mean_s) == (8, 0.5)
    assert found.p50_s == pytest.approx(0.1)
    assert found.p99_s == pytest.approx(0.1 + 0.9 * (7.92 - 4) / 4)
    assert queue_time(before, before) is None
    assert queue_time(None, Snapshot(at_s=9)) is None


def test_a_quantile_beyond_the_last_bucket_is_unknown() -> None:
    """More than the largest bound is all one can say, so nothing is said."""
    assert histogram_quantile(((1.0, 1.0), (float("inf"), 10.0)), 0.99) is None
