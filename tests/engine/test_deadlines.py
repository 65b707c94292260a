"""What has waited or taken too long ends, with its reason, in the next step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.config import EngineConfig
from service.errors import ConfigError
from service.types import Claim, FinishReason
from tests.engine.fakes import FakeClock, HistoryRunner, engine, expected_output, output, request, run, steps


def test_what_is_not_begun_in_time_is_ended_and_never_computed() -> None:
    """It waits behind another until the limit; it has no scheduled instant, which tells that nothing was begun."""
    clock, runner = FakeClock(), HistoryRunner()
    core = engine(runner, clock, max_num_seqs=1, queue_timeout_s=5.0)
    core.add(request(1, max_tokens=9, request_id="first"))
    core.add(request(2, request_id="second"))
    core.step()
    clock.now += 5.1

    ends = {event.request_id: event for events, _ in steps(core) for event in events if event.finish_reason}

    assert ends["first"].finish_reason is FinishReason.LENGTH
    assert ends["second"].finish_reason is FinishReason.TIMEOUT
    assert ends["second"].timings is not None
    assert ends["second"].timings.scheduled_at is None
    assert all(name == "first" for batch in runner.batches for name, _, _ in batch)


def test_the_limit_on_waiting_ends_nothing_that_was_begun() -> None:
    """However long it takes from there."""
    clock = FakeClock()
    core = engine(HistoryRunner(), clock, queue_timeout_s=5.0)
    core.add(request(1, max_tokens=3))
    core.step()
    clock.now += 1000.0

    [(events, _), *_] = steps(core)

    assert events[0].finish_reason is None


def test_a_deadline_ends_a_sequence_in_the_middle() -> None:
    """Its tokens so far were sent; the end says why."""
    clock = FakeClock()
    core = engine(HistoryRunner(), clock)
    core.add(replace(request(1, max_tokens=9, request_id="x"), claim=Claim(deadline_at=103.0)))
    events = [event for _ in range(3) for event in core.step().events]
    clock.now += 3.1

    [end] = core.step().events

    assert output(events, "x") == expected_output((1,), 3)
    assert end.finish_reason is FinishReason.TIMEOUT
    assert end.timings is not None
    assert end.timings.scheduled_at == 100.0
    assert not core.has_work
    core.check_integrity()


def test_who_says_how_long_it_waits_waits_so_long() -> None:
    """A deadline of its own stands in for the limit on waiting."""
    clock = FakeClock()
    core = engine(HistoryRunner(), clock, max_num_seqs=1, queue_timeout_s=5.0)
    core.add(request(1, max_tokens=2))
    core.add(replace(request(2, request_id="patient"), claim=Claim(deadline_at=200.0)))
    core.step()
    clock.now += 50.0

    ends = [event.finish_reason for events, _ in steps(core) for event in events if event.request_id == "patient"]

    assert ends[-1] is FinishReason.LENGTH


@given(
    deadlines=st.lists(st.sampled_from([100.5, 102.0, 104.0, math.inf]), min_size=1, max_size=8),
    queue_timeout_s=st.sampled_from([1.0, 3.0, math.inf]),
    max_num_seqs=st.integers(1, 3),
)
def test_nothing_goes_on_after_its_time(deadlines: list[float], queue_timeout_s: float, max_num_seqs: int) -> None:
    """A token never comes after the deadline, nothing begins after the limit, and every end has its reason."""
    clock = FakeClock()
    core = engine(HistoryRunner(), clock, max_num_seqs=max_num_seqs, queue_timeout_s=queue_timeout_s)
    requests = {
        f"r{i}": replace(request(i, request_id=f"r{i}"), claim=Claim(deadline_at=at)) for i, at in enumerate(deadlines)
    }
    for each in requests.values():
        core.add(each)
    num_ends = 0
    while core.has_work:
        for event in core.step().events:
            asked = requests[event.request_id]
            num_ends += event.finish_reason is not None
            if event.finish_reason is FinishReason.TIMEOUT:
                assert event.timings is not None
                is_waiting = event.timings.scheduled_at is None and asked.claim.deadline_at == math.inf
                assert clock.now > (100.0 + queue_timeout_s if is_waiting else asked.claim.deadline_at)
            else:
                assert clock.now <= asked.claim.deadline_at
        clock.now += 0.4

    assert num_ends == len(requests)
    core.check_integrity()


def test_siblings_end_together() -> None:
    """Each of n sequences has its end."""
    clock = FakeClock()
    core = engine(HistoryRunner(), clock)
    core.add(replace(request(1, n=3, max_tokens=9), claim=Claim(deadline_at=101.0)))
    core.step()
    clock.now += 2.0

    ends = core.step().events

    assert sorted((event.index, event.finish_reason) for event in ends) == [(i, FinishReason.TIMEOUT) for i in range(3)]


def test_a_deadline_changes_no_neighbour() -> None:
    """Others get the tokens that they get alone."""
    clock = FakeClock()
    core = engine(HistoryRunner(), clock)
    core.add(replace(request(7, max_tokens=9), claim=Claim(deadline_at=99.0)))

    assert output(run(core, request(1, request_id="x")), "x") == expected_output((1,), 4)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_limit_that_cannot_work_is_refused(value: float) -> None:
    """By its name."""
    with pytest.raises(ConfigError, match="queue_timeout_s"):
        EngineConfig(queue_timeout_s=value)
