"""The simulated replica against the engine itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.autoscaling.signals import EngineLimits
from service.autoscaling.simulator.replica import SimulatedReplica
from service.autoscaling.simulator.sequence import SimulatedSequence, prefill_alone_s
from service.autoscaling.simulator.workload import SimulatedRequest
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.synthetic import StepCost, SyntheticRunner
from service.types import GenerateRequest, SamplingParams, SequenceTimings
from tests.engine.fakes import FakeClock


def served_by_engine(requests: list[SimulatedRequest], cost: StepCost, limits: EngineLimits) -> list[SequenceTimings]:
    """The timings that `EngineCore` gives the requests in virtual time."""
    clock = FakeClock(0.0)
    runner = SyntheticRunner(
        cost=cost,
        num_blocks=limits.kv_tokens // limits.block_size,
        block_size=limits.block_size,
        max_model_len=10**6,
        sleep=clock.sleep,
    )
    config = EngineConfig(
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        prefix_caching=False,
    )
    core = EngineCore(runner, config, clock)
    timings: dict[int, SequenceTimings] = {}
    position = 0
    while position < len(requests) or core.has_work:
        if not core.has_work:
            clock.now = max(clock.now, requests[position].arrival_at)
        while position < len(requests) and requests[position].arrival_at <= clock.now:
            core.add(as_request(requests[position], position))
            position += 1
        for event in core.step().events:
            if event.timings is not None:
                timings[int(event.request_id)] = event.timings
    return [timings[i] for i in range(len(requests))]


def as_request(request: SimulatedRequest, number: int) -> GenerateRequest:
    return GenerateRequest(
        request_id=str(number),
        prompt_token_ids=(1,) * request.num_prompt_tokens,
        sampling=SamplingParams(max_tokens=request.num_output_tokens, ignore_eos=True),
        arrival_at=request.arrival_at,
    )


def served_by_replica(
    requests: list[SimulatedRequest], cost: StepCost, limits: EngineLimits
) -> tuple[list[SimulatedSequence], SimulatedReplica]:
    replica = SimulatedReplica(cost, limits, 0.0)
    sequences = [SimulatedSequence.of(request) for request in requests]
    for sequence in sequences:
        replica.run_until(sequence.request.arrival_at)
        replica.add(sequence, sequence.request.arrival_at)
    replica.run_until(1e9)
    return sequences, replica


# Every step below takes a multiple of 1e-7 s: off that grid, none arrives in the very instant in which a step ends,
# where the last bit of a sum would decide which step it joins.
OFF_GRID_S = 3e-9


@st.composite
def request_lists(draw: st.DrawFn) -> list[SimulatedRequest]:
    at, requests = 0.0, []
    for _ in range(draw(st.integers(1, 30))):
        at += draw(st.sampled_from([0.0, 0.01, 0.3, 2.0])) + OFF_GRID_S
        requests.append(SimulatedRequest(at, draw(st.integers(1, 100)), draw(st.integers(1, 50))))
    return requests


COSTS = st.sampled_from(
    [
        StepCost(base_s=0.025, per_sequence_s=5e-4, per_prefill_token_s=1e-4, per_context_token_s=context_s)
        for context_s in (0.0, 1e-7, 1e-4)
    ]
)


@st.composite
def engine_limits(draw: st.DrawFn) -> EngineLimits:
    return EngineLimits(
        max_num_seqs=draw(st.integers(1, 12)),
        max_num_batched_tokens=draw(st.integers(12, 80)),
        kv_tokens=draw(st.sampled_from([160, 320, 640, 4096])),
        block_size=draw(st.sampled_from([4, 16])),
    )


@settings(deadline=None, max_examples=150)
@given(request_lists(), COSTS, engine_limits())
def test_every_token_comes_when_the_engine_would_bring_it(
    requests: list[SimulatedRequest], cost: StepCost, limits: EngineLimits
) -> None:
    """First token, last token and preemptions of every request are those of `EngineCore`, whatever the limits."""
    expected = served_by_engine(requests, cost, limits)
    sequences, replica = served_by_replica(requests, cost, limits)
    assert [s.first_token_at for s in sequences] == pytest.approx([t.first_token_at for t in expected], abs=1e-9)
    assert [s.last_token_at for s in sequences] == pytest.approx([t.last_token_at for t in expected], abs=1e-9)
    assert replica.totals.num_preemptions == sum(t.num_preemptions for t in expected)


@given(st.integers(1, 3000), st.integers(1, 600))
def test_a_prompt_alone_takes_what_it_takes_an_idle_replica(num_prompt_tokens: int, chunk: int) -> None:
    """`prefill_alone_s` is the replica's own time to the first token."""
    cost = StepCost(base_s=0.02, per_sequence_s=1e-3, per_prefill_token_s=2e-4, per_context_token_s=1e-6)
    limits = EngineLimits(max_num_seqs=1, max_num_batched_tokens=chunk)
    (sequence,), _ = served_by_replica([SimulatedRequest(0.0, num_prompt_tokens, 2)], cost, limits)
    assert sequence.first_token_at == pytest.approx(prefill_alone_s(num_prompt_tokens, cost, limits))


def test_totals_obey_the_cost_of_a_step() -> None:
    """The sums that a replica reports satisfy the equation that the cost model fits."""
    cost = StepCost(base_s=0.02, per_sequence_s=1e-3, per_prefill_token_s=2e-4, per_context_token_s=1e-6)
    requests = [SimulatedRequest(0.1 * i, 50 + i, 20 + i) for i in range(20)]
    _, replica = served_by_replica(requests, cost, EngineLimits(max_num_seqs=4, max_num_batched_tokens=64))
    totals = replica.totals
    assert totals.busy_s == pytest.approx(
        totals.num_steps * 0.02
        + totals.num_sequences * 1e-3
        + totals.num_prefill_tokens * 2e-4
        + totals.num_context_tokens * 1e-6
    )


def test_cached_prefixes_are_not_computed_again_and_the_oldest_are_forgotten() -> None:
    """The second request with the same ids computes the rest only, unless others have pushed them out meanwhile."""
    limits = EngineLimits(kv_tokens=4 * 512)
    replica = SimulatedReplica(StepCost(base_s=0.01), limits, 0.0)
    request = SimulatedRequest(0.0, 1100, 1, (1, 2))
    replica.add(SimulatedSequence.of(request), 0.0)
    replica.run_until(10.0)
    assert replica.num_hit_tokens(request) == 1024
    assert replica.num_hit_tokens(request._replace(num_prompt_tokens=1024)) == 1008  # one token at least is computed
    replica.add(SimulatedSequence.of(SimulatedRequest(10.0, 1600, 1, (3, 4, 5))), 10.0)
    replica.run_until(20.0)
    assert replica.num_hit_tokens(request) == 0
    assert replica.num_prefill_left == 0


def test_the_autoscaler_needs_neither_torch_nor_ray() -> None:
    """Importing law, simulator and command pulls in no tensor, cluster or HTTP library."""
    check = (
        "import sys, service.autoscaling.command\n"
        "print(sorted({'torch', 'ray', 'fastapi', 'prometheus_client'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
