"""The search finds the rate at which the SLO breaks, and says how sure it is."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import ScenarioError
from loadtest.kinds import ConstantRate
from loadtest.records import Outcome, Record
from loadtest.scenario import parse_scenario
from loadtest.spec import Scenario, Slo
from loadtest.sweep import Bounds, Hopeless, Step, SweepResult, Trial, at_rate, conclude, decide, next_rate, sweep
from loadtest.worker import Progress
from tests.loadtest.fabricate import fabricate

SLO = Slo(ttft_s=0.5, share=0.95)


def _scenario() -> Scenario:
    return parse_scenario({"arrivals": {"kind": "constant", "rate_rps": 1, "duration_s": 60}})


class _Model:
    """A server whose share of good requests falls from 1 to 0 around `capacity_rps`."""

    def __init__(self, capacity_rps: float, *, sharpness: float = 20.0, hopeless_above: float = 1e9) -> None:
        self._capacity = capacity_rps
        self._sharpness = sharpness
        self._hopeless_above = hopeless_above
        self.tried: list[float] = []
        self.seeds: list[int] = []

    async def __call__(self, scenario: Scenario) -> Trial:
        assert isinstance(scenario.arrivals, ConstantRate)
        rate = scenario.arrivals.rate_rps
        self.tried.append(rate)
        self.seeds.append(scenario.seed)
        # 95 % are good exactly at the capacity.
        share = 1 / (1 + (rate / self._capacity) ** self._sharpness / 19)
        rng = np.random.default_rng(scenario.seed)
        records = [
            Record(
                index=index, tenant="t", conversation=index, turn=0, intended_s=index / rate, outcome=Outcome.OK,
                sent_s=index / rate, first_s=index / rate + (0.1 if good else 1.0), planned_output_tokens=1,
            )
            for index, good in enumerate(rng.random(400) < share)
        ]  # fmt: skip
        result = fabricate().model_copy(update={"scenario": scenario.model_dump()})
        return Trial(result, records, is_hopeless=rate > self._hopeless_above)


async def _sweep(model: _Model, bounds: Bounds) -> SweepResult:
    return await sweep(_scenario(), SLO, bounds, model, lambda step: None)


@pytest.mark.parametrize("start", [0.3, 10.0, 300.0])
async def test_the_capacity_is_found(start: float) -> None:
    """From below, near and above: within the tolerance (and a little noise) of where the SLO breaks."""
    model = _Model(12.0)
    found = await _sweep(model, Bounds(start_rps=start, tolerance=0.05, max_steps=30))

    assert found.max_rate_rps == pytest.approx(12.0, rel=0.12)
    assert found.stopped_because == "tolerance"
    assert found.proven_rps is not None
    assert found.refuted_rps is not None
    assert found.proven_rps <= 12.5
    assert found.refuted_rps >= 11.5
    assert f"Holds {found.max_rate_rps:.3g} req/s within TTFT 500 ms for 95% of requests" in found.verdict


async def test_uncertain_rates_are_repeated_with_fresh_seeds() -> None:
    """A rate whose interval straddles the SLO gets more runs, never the same arrivals twice."""
    model = _Model(12.0)
    await _sweep(model, Bounds(start_rps=12.0, tolerance=0.05))

    assert max(Counter(model.tried).values()) > 1
    assert len(set(model.seeds)) == len(model.seeds)


async def test_hopeless_runs_break_the_rate_at_once() -> None:
    """A run cut short counts as broken and proven, without a share."""
    found = await _sweep(_Model(12.0, hopeless_above=20.0), Bounds(start_rps=40.0))

    assert [step.share for step in found.steps if step.rate_rps > 20] == [None]
    assert found.refuted_rps is not None


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"is_valid": False, "reasons": ["The tester was late"]}, "invalid: The tester was late"),
        ({"is_partial": True}, "interrupted"),
    ],
)
async def test_bad_runs_end_the_search(update: dict[str, object], says: str) -> None:
    """The tester's own limit is not the server's: the search stops and says why."""

    async def run(scenario: Scenario) -> Trial:
        result = fabricate()
        return Trial(result.model_copy(update={"validity": result.validity.model_copy(update=update)}), [], False)

    found = await sweep(_scenario(), SLO, Bounds(start_rps=1.0), run, lambda step: None)

    assert says in found.stopped_because
    assert found.steps == []
    assert found.verdict.startswith("No rate tried holds TTFT 500 ms")


@given(st.lists(st.tuples(st.floats(0.1, 100), st.booleans()), max_size=10))
@settings(deadline=None)
def test_the_next_rate_is_always_within_the_bracket(tried: list[tuple[float, bool]]) -> None:
    """Whatever has been seen, the next rate lies strictly between what held and what broke, or doubles or halves it."""
    steps = [
        Step(rate_rps=rate, is_held=held, is_proven=True, share=0.5, share_low=0, share_high=1, num_requests=1)
        for rate, held in tried
    ]
    bounds = Bounds(start_rps=5.0, max_steps=11)
    rate = next_rate(steps, bounds)

    broke = [step.rate_rps for step in steps if not step.is_held]
    if isinstance(rate, str):
        assert rate in {"tolerance", "bounds"}
        return
    assert bounds.lowest_rps <= rate <= bounds.highest_rps
    if broke:
        assert rate < min(broke)
    held = conclude(steps, SLO, "").max_rate_rps
    if held is not None:
        assert rate > held


def test_a_step_is_proven_by_its_interval() -> None:
    """All of 400 good: proven. 96 % of 100 good: held, not proven. Half good: broken, proven."""
    many = decide(1.0, [True] * 400, SLO)
    few = decide(1.0, [index % 25 != 0 for index in range(100)], SLO)
    half = decide(1.0, [index % 2 == 0 for index in range(400)], SLO)

    assert (many.is_held, many.is_proven) == (True, True)
    assert (few.is_held, few.is_proven) == (True, False)
    assert (half.is_held, half.is_proven) == (False, True)


def test_only_arrivals_with_one_rate_can_be_swept() -> None:
    """A ramp has no rate to search for."""
    scenario = parse_scenario({"arrivals": {"kind": "ramp", "from_rps": 1, "to_rps": 2, "duration_s": 5}})

    with pytest.raises(ScenarioError, match="not ramp"):
        at_rate(scenario, 2.0, 0)


async def test_hopeless_stops_when_too_many_are_bad() -> None:
    """4 of 80 may be bad, and one of the warm-up; the sixth, slow or failed, ends the run."""
    stop = asyncio.Event()
    watcher = Hopeless(SLO, stop)
    watcher.plan(80, num_warmup=1)

    watcher.progress(0, Progress(outcomes=Counter({"ok": 50, "cut": 2}), ttfts_s=[0.1, 0.6, 0.7, 0.8]))
    assert not stop.is_set()
    watcher.progress(1, Progress(outcomes=Counter({"http": 1, "disconnected": 9})))

    assert stop.is_set()
    assert watcher.is_hopeless
