"""A run that says more about the tester than about the server says so."""

from __future__ import annotations

import numpy as np

from loadtest.histogram import GapHistogram
from loadtest.measures import latencies
from loadtest.records import Outcome, Record
from loadtest.results import Validity
from loadtest.validity import judge


def _judge(lateness_s: float, ttft_s: float, cpu: float = 0.3, outcome: Outcome = Outcome.OK) -> Validity:
    records = [
        Record(
            index=index, tenant="a", conversation=index, turn=0, intended_s=index, sent_s=index + lateness_s,
            first_s=index + ttft_s, end_s=index + ttft_s, planned_output_tokens=1,
            outcome=outcome if index == 0 else Outcome.OK,
        )
        for index in range(200)
    ]  # fmt: skip
    return judge(
        records,
        latencies(records, GapHistogram(200).counts),
        [[0.1] * 20, [cpu] * 20],
        accepted_lateness_s=0.005,
        is_partial=False,
    )


def test_a_punctual_idle_tester_is_valid() -> None:
    """Small lateness against the TTFT, CPU to spare."""
    found = _judge(lateness_s=0.02, ttft_s=0.5)

    assert found.is_valid
    assert found.lateness_limit_s == np.float64(0.025)


def test_lateness_invalidates() -> None:
    """1 % of requests later than 5 % of the median TTFT: the reason and the remedy are given."""
    found = _judge(lateness_s=0.03, ttft_s=0.5)

    assert not found.is_valid
    assert "was late" in found.reasons[0]
    assert "more workers" in found.reasons[0]


def test_timer_resolution_is_no_lateness() -> None:
    """Against a server that answers at once, a few milliseconds are what timers cost."""
    assert _judge(lateness_s=0.004, ttft_s=0.005).is_valid
    assert not _judge(lateness_s=0.006, ttft_s=0.007).is_valid


def test_a_saturated_worker_invalidates() -> None:
    """One worker without CPU to spare is enough, and is named."""
    found = _judge(lateness_s=0.0, ttft_s=0.5, cpu=0.97)

    assert [reason.split("'")[0] for reason in found.reasons] == ["Worker 1"]


def test_dropped_requests_invalidate() -> None:
    """What the tester did not send, the server cannot be judged by."""
    found = _judge(lateness_s=0.0, ttft_s=0.5, outcome=Outcome.DROPPED)

    assert not found.is_valid
    assert "max_in_flight" in found.reasons[0]
