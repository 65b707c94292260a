"""What a replica says of itself: added up from steps, and the same after the journey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.autoscaling.report import Collector, Report
from service.autoscaling.signals import EngineLimits, StepTotals
from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost
from service.types import FinishReason, SequenceTimings, StepStats
from tests.autoscaling.strategies import stats

SLO = Slo(ttft_s=1.0, tpot_s=0.1)
REPORT = Report(
    stats=stats(7.5, num_running=3, num_prompt_tokens=90, kv_usage=0.25),
    limits=EngineLimits(max_num_seqs=8, max_num_batched_tokens=64, kv_tokens=1024, block_size=16),
    cost_prior=StepCost(base_s=0.02, per_sequence_s=1e-3),
    start_up_s=2.5,
    is_draining=True,
)


def timings(*, first: float | None, last: float | None, num_output_tokens: int = 1) -> SequenceTimings:
    return SequenceTimings(
        arrival_at=10.0, first_token_at=first, last_token_at=last, num_output_tokens=num_output_tokens
    )


def step(**values: object) -> StepStats:
    return StepStats(**{"duration_s": 0.5, "num_running": 2, "num_waiting": 1, "kv_usage": 0.5, **values})  # type: ignore[arg-type]


def test_a_report_survives_the_journey() -> None:
    """Numbers out, numbers in: the same report."""
    assert Report.of_numbers(REPORT.to_numbers()) == REPORT


@pytest.mark.parametrize("name", sorted(REPORT.to_numbers()))
def test_a_number_that_is_missing_makes_the_report_unknown(name: str) -> None:
    """Unknown is None, never 0."""
    numbers = REPORT.to_numbers()
    del numbers[name]
    assert Report.of_numbers(numbers) is None


@given(st.dictionaries(st.sampled_from(sorted(REPORT.to_numbers())), st.floats()))
def test_no_numbers_raise(changes: dict[str, float]) -> None:
    """Whatever the numbers are, there is a report or there is none."""
    report = Report.of_numbers({**REPORT.to_numbers(), **changes})
    assert report is None or isinstance(report, Report)


def test_steps_add_up() -> None:
    """State is that of the last step, counters are sums, and the instant is the reader's."""
    collector = Collector(SLO)
    done = ((FinishReason.LENGTH, timings(first=10.5, last=10.6, num_output_tokens=2)),)
    collector.on_step(
        step(num_arrived=2, num_arrived_prompt_tokens=30, num_scheduled=2, num_prefill_tokens=28, num_context_tokens=30)
    )
    collector.on_step(
        step(num_running=1, num_scheduled=2, num_context_tokens=32, num_prefix_hit_tokens=4, finished=done)
    )
    read = collector.read(99.0)
    assert (read.at, read.num_running, read.num_requests, read.num_prompt_tokens, read.num_hit_tokens) == (
        99,
        1,
        2,
        30,
        4,
    )
    assert (read.num_finished, read.num_output_tokens, read.num_slo_misses) == (1, 2, 0)
    assert read.steps == StepTotals(
        num_steps=2, num_sequences=4, num_prefill_tokens=28, num_context_tokens=62, duration_s=1.0
    )


def test_a_step_with_drafts_counts_as_the_steps_that_it_stands_for() -> None:
    """Four tokens of two sequences: two plain steps, in the time of one; the prompt beside them is computed once."""
    collector = Collector(SLO)
    collector.on_step(
        step(num_scheduled=2, num_output_tokens=4, num_prefill_tokens=6, num_context_tokens=30, drafts=((4, 2), (1, 0)))
    )

    assert collector.read(0.0).steps == StepTotals(
        num_steps=2, num_sequences=4, num_prefill_tokens=6, num_context_tokens=60, duration_s=0.5
    )


def test_what_was_refused_was_asked_for_all_the_same() -> None:
    """A fleet that turns requests away is too small for them, though it never gets them."""
    collector = Collector(SLO)
    collector.on_step(step(num_arrived=1, num_arrived_prompt_tokens=10, num_refused=4, num_refused_prompt_tokens=40))

    read = collector.read(0.0)

    assert (read.num_requests, read.num_prompt_tokens, read.num_finished) == (5, 50, 0)


def test_a_step_that_computes_nothing_says_nothing_of_the_cost() -> None:
    """Steps that only abort would make steps look cheap."""
    collector = Collector(SLO)
    collector.on_step(step(num_scheduled=0))
    assert collector.read(0.0).steps == StepTotals()


@pytest.mark.parametrize(
    ("case", "met"),
    [
        (timings(first=11.0, last=11.0), True),
        (timings(first=11.1, last=11.1), False),
        (timings(first=10.1, last=10.39, num_output_tokens=4), True),
        (timings(first=10.1, last=10.5, num_output_tokens=4), False),
        (timings(first=None, last=None, num_output_tokens=0), True),
    ],
    ids=["just in time", "late", "quick", "slow", "no token"],
)
def test_misses_are_counted(case: SequenceTimings, met: bool) -> None:
    """A miss is a late first token or a slow rest."""
    collector = Collector(SLO)
    collector.on_step(step(finished=((FinishReason.STOP, case),)))
    assert collector.read(0.0).num_slo_misses == int(not met)
