"""The schedule is complete, seeded, and the same however many workers send it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import ScenarioError
from loadtest.kinds import Choice, Constant, Distribution, LogNormal, Uniform
from loadtest.scenario import parse_scenario
from loadtest.schedule import conversations, make_schedule, sample, share_of
from loadtest.spec import Scenario


def _scenario(**changes: Any) -> Scenario:
    base: dict[str, Any] = {"arrivals": {"kind": "poisson", "rate_rps": 20, "duration_s": 20}}
    return parse_scenario({**base, **changes})


MIXED: dict[str, Any] = {
    "prompt_tokens": {"kind": "uniform", "low": 10, "high": 90},
    "output_tokens": {"kind": "choice", "values": [4, 8]},
    "shared_prefix": {"groups": 3, "tokens": 20},
    "conversation": {"turns": {"kind": "choice", "values": [1, 2, 3]}, "think_s": 0.5},
    "tenants": [{"name": "a", "weight": 3}, {"name": "b"}],
    "disconnect": {"share": 0.25, "after_s": 1},
    "deadline_s": 9,
}


@given(st.integers(0, 10_000), st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_workers_share_out_exactly_the_schedule(seed: int, num_workers: int) -> None:
    """Whatever the number of workers: together they send each request once, conversations whole and in order."""
    requests = make_schedule(_scenario(seed=seed, workload=MIXED)).requests

    dealt = [turns for worker in range(num_workers) for turns in conversations(requests, worker, num_workers)]

    assert sorted(request.index for turns in dealt for request in turns) == list(range(len(requests)))
    assert all([request.turn for request in turns] == list(range(len(turns))) for turns in dealt)
    assert all(len({request.conversation for request in turns}) == 1 for turns in dealt)


@given(st.integers(1, 5000), st.integers(1, 64))
def test_clients_are_shared_out_exactly(total: int, num_workers: int) -> None:
    """The workers' parts add up to the whole and differ by at most one."""
    parts = [share_of(total, worker, num_workers) for worker in range(num_workers)]

    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


def test_the_hash_tells_schedules_apart() -> None:
    """Same scenario, same hash; another seed, rate or length, another hash."""
    first = make_schedule(_scenario())

    assert make_schedule(_scenario()) == first
    others = [
        _scenario(seed=1),
        _scenario(workload={"output_tokens": 33}),
        _scenario(arrivals={"kind": "poisson", "rate_rps": 21, "duration_s": 20}),
    ]
    assert len({first.sha256, *(make_schedule(other).sha256 for other in others)}) == 4


def test_aspects_do_not_disturb_each_other() -> None:
    """Changing lengths leaves arrivals and tenants as they were."""
    tenants = {"tenants": [{"name": "a"}, {"name": "b"}]}
    short = make_schedule(_scenario(workload=tenants)).requests
    long = make_schedule(
        _scenario(workload={**tenants, "prompt_tokens": {"kind": "uniform", "low": 5, "high": 500}})
    ).requests

    assert [(r.at_s, r.tenant) for r in short] == [(r.at_s, r.tenant) for r in long]


def test_shares_are_as_asked() -> None:
    """Tenants by weight, disconnects and verification by share, turns as drawn."""
    scenario = _scenario(
        arrivals={"kind": "poisson", "rate_rps": 100, "duration_s": 100}, workload=MIXED, verify_share=0.1
    )
    requests = make_schedule(scenario).requests
    count = len(requests)

    assert sum(r.tenant == 0 for r in requests) / count == pytest.approx(0.75, abs=0.02)
    assert sum(r.disconnect_after_s is not None for r in requests) / count == pytest.approx(0.25, abs=0.02)
    assert sum(r.is_verified for r in requests) / count == pytest.approx(0.1, abs=0.01)
    assert count / (requests[-1].conversation + 1) == pytest.approx(2, abs=0.05)
    assert {r.deadline_s for r in requests} == {9.0}


def test_later_turns_wait_for_the_answer() -> None:
    """Only first turns have a due time; later ones think first and bring only their own text."""
    requests = make_schedule(_scenario(workload=MIXED)).requests
    later = [request for request in requests if request.turn > 0]

    assert later
    assert all(r.at_s is None and r.think_s == 0.5 and len(r.segments) == 1 for r in later)


def test_shared_prefixes_are_shared_and_within_the_length() -> None:
    """First turns begin with one of the groups' texts, and the prompt keeps its length."""
    workload = {"prompt_tokens": 50, "shared_prefix": {"groups": 3, "tokens": 20}}
    requests = make_schedule(_scenario(workload=workload)).requests

    assert {r.segments[0].key for r in requests} == {"prefix-0", "prefix-1", "prefix-2"}
    assert {r.prompt_tokens for r in requests} == {50}
    assert len({r.segments[1].key for r in requests}) == len(requests)


def test_a_traces_lengths_and_prefix_blocks_are_planned(tmp_path: Path) -> None:
    """Mooncake blocks become shared segments, as far as the prompt reaches."""
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1100, "output_length": 7, "hash_ids": [4, 9, 11]}\n')
    requests = make_schedule(_scenario(arrivals={"kind": "trace", "path": str(path), "token_scale": 0.1})).requests

    assert [(s.key, s.tokens) for s in requests[0].segments] == [("block-4", 51), ("block-9", 51), ("request-0", 8)]
    assert (requests[0].prompt_tokens, requests[0].output_tokens) == (110, 1)


def test_a_tenants_own_lengths_win() -> None:
    """A noisy neighbour's requests are as long as it says."""
    tenants = [{"name": "quiet"}, {"name": "noisy", "prompt_tokens": 900, "output_tokens": 90}]
    requests = make_schedule(_scenario(workload={"tenants": tenants})).requests

    assert {(r.tenant, r.prompt_tokens, r.output_tokens) for r in requests} == {(0, 64, 32), (1, 900, 90)}


def test_file_prompts_bring_their_turns() -> None:
    """A conversation over a prompts file has at most as many turns as the entry."""
    scenario = _scenario(workload={"conversation": {"turns": 5}})
    requests = make_schedule(scenario, [("one",), ("one", "two")]).requests

    assert {(r.file_prompt, r.turn) for r in requests} == {(0, 0), (1, 0), (1, 1)}
    assert all(r.segments == () and r.prompt_tokens is None for r in requests)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"limits": {"max_requests": 100}}, "raise limits.max_requests"),
        ({"limits": {"max_duration_s": 10}}, "raise limits.max_duration_s"),
        ({"arrivals": {"kind": "constant", "rate_rps": 0.001, "duration_s": 1}}, "sends no request"),
    ],
)
def test_bounds_are_enforced_before_anything_is_sent(changes: dict[str, Any], says: str) -> None:
    """A schedule beyond its limits, or with nothing in it, is refused with the way out."""
    with pytest.raises(ScenarioError, match=says):
        make_schedule(_scenario(**changes))


def test_a_closed_loop_has_no_due_times() -> None:
    """As many requests as asked, each when a client is free."""
    schedule = make_schedule(_scenario(arrivals={"kind": "closed", "concurrency": 4, "num_requests": 10}))

    assert [request.at_s for request in schedule.requests] == [None] * 10
    assert schedule.starts_s() == []


@pytest.mark.parametrize(
    ("distribution", "mean", "low", "high"),
    [
        (Constant(value=7), 7, 7, 7),
        (Uniform(kind="uniform", low=2, high=6), 4, 2, 6),
        (LogNormal(kind="lognormal", median=10, sigma=0.5, high=30), 11.2, 1, 30),
        (Choice(kind="choice", values=(1.0, 9.0), weights=(3.0, 1.0)), 3, 1, 9),
    ],
)
def test_distributions(distribution: Distribution, mean: float, low: float, high: float) -> None:
    """Draws have the mean and keep the bounds."""
    draws = sample(distribution, 20_000, np.random.default_rng(0))

    assert draws.mean() == pytest.approx(mean, rel=0.02)
    assert draws.min() >= low
    assert draws.max() <= high
