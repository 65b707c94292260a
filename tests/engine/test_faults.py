"""Faults on purpose: each ends what it should end, and the engine goes on."""

from __future__ import annotations

from typing import Any

import pytest

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.faults import HANG_S, Faults, FaultyRunner
from service.errors import ConfigError
from service.types import FinishReason
from tests.engine.fakes import FakeClock, request, run

NUM_REQUESTS = 200


def outcome(**faults: Any) -> tuple[int, list[float]]:
    """How many of 200 requests failed, and what was slept."""
    slept: list[float] = []
    runner = FaultyRunner(faults=Faults(**faults), vocab_size=50, block_size=4, sleep=slept.append)
    core = EngineCore(runner, EngineConfig(max_num_seqs=16, max_num_batched_tokens=64), FakeClock())
    events = run(core, *(request(1, 2, request_id=f"{i}", max_tokens=3) for i in range(NUM_REQUESTS)))
    core.check_integrity()
    ends = [event.finish_reason for event in events if event.finish_reason]
    assert len(ends) == NUM_REQUESTS
    return ends.count(FinishReason.ERROR), slept


@pytest.mark.parametrize("fault", ["error", "crash"])
def test_who_is_struck_fails_alone(fault: str) -> None:
    """As many as the share says, about; the others finish."""
    assert 5 < outcome(**{fault: 0.1})[0] < 40


def test_a_stall_takes_its_time_and_harms_nobody() -> None:
    """A step longer, not a request less."""
    num_failed, slept = outcome(stall=0.1, stall_s=7.0)
    assert num_failed == 0
    assert set(slept) == {7.0}


def test_a_hanging_step_does_not_end() -> None:
    """For longer than anyone waits."""
    assert HANG_S in outcome(hang=0.1)[1]


def test_without_faults_nothing_fails() -> None:
    """The runner is the synthetic one."""
    assert outcome() == (0, [])


@pytest.mark.parametrize("faults", [{"error": 1.1}, {"hang": -0.1}, {"stall_s": -1.0}])
def test_shares_are_between_0_and_1(faults: dict[str, float]) -> None:
    """Named where they are not."""
    with pytest.raises(ConfigError, match=next(iter(faults))):
        Faults(**faults)
