"""A tenant that floods an engine, and one that does not: in virtual time, with the synthetic runner's law of a step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.synthetic import StepCost, SyntheticRunner
from service.types import Claim, GenerateRequest
from tests.engine.fakes import FakeClock, request

MAX_NUM_SEQS = 16
SPAN_S = 100.0
MAX_WAITING = 32
QUIET = Claim(tenant="quiet")
FLOOD = Claim(tenant="flood")


@dataclass(frozen=True)
class Load:
    """Requests of a tenant: so many a second, with prompts and outputs of about so many tokens."""

    claim: Claim
    rate_rps: float
    num_prompt_tokens: int
    num_output_tokens: int

    def requests(self, seed: int) -> Iterable[GenerateRequest]:
        random, at = Random(seed), 0.0
        while (at := at + random.expovariate(self.rate_rps)) < SPAN_S:
            num_prompt_tokens = random.randint(self.num_prompt_tokens // 2, 2 * self.num_prompt_tokens)
            num_output_tokens = random.randint(self.num_output_tokens // 2, 2 * self.num_output_tokens)
            prompt = [random.randrange(1000) for _ in range(num_prompt_tokens)]
            asked = request(*prompt, max_tokens=num_output_tokens, ignore_eos=True, arrival_at=at)
            yield replace(asked, claim=self.claim)


def ttft_s(loads: list[Load], cost: StepCost, seed: int) -> dict[str, list[float]]:
    """Times to first token by tenant, of what was begun."""
    clock = FakeClock(0.0)
    runner = SyntheticRunner(cost=cost, sleep=clock.sleep)
    core = EngineCore(runner, EngineConfig(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=256), clock)
    pending = sorted((each for load in loads for each in load.requests(seed)), key=lambda each: -each.arrival_at)
    tenants = {each.request_id: each.claim.tenant for each in pending}
    found: dict[str, list[float]] = {load.claim.tenant: [] for load in loads}
    num_waiting = 0
    while pending or core.has_work:
        if not core.has_work:
            clock.now = max(clock.now, pending[-1].arrival_at)
        while pending and pending[-1].arrival_at <= clock.now:
            asked = pending.pop()
            if asked.claim is QUIET or num_waiting < MAX_WAITING:  # a full queue refuses the flood
                core.add(asked)
        if clock.now > SPAN_S:
            return found
        events, stats = core.step()
        num_waiting = stats.num_waiting
        for event in events:
            if event.timings is not None and event.finish_reason is None:
                assert event.timings.first_token_at is not None
                found[tenants[event.request_id]].append(event.timings.first_token_at - event.timings.arrival_at)
    return found


STEPS_COST = StepCost(base_s=0.05, per_sequence_s=1e-3, per_prefill_token_s=1e-5)
PROMPTS_COST = StepCost(base_s=0.02, per_sequence_s=1e-3, per_prefill_token_s=2e-4)


@pytest.mark.parametrize(("cost", "most"), [(STEPS_COST, 2.0), (PROMPTS_COST, 2.5)], ids=["steps", "prompts"])
@pytest.mark.parametrize(("num_prompt_tokens", "num_output_tokens"), [(100, 40), (600, 100)], ids=["like", "heavy"])
def test_a_flood_hardly_delays_others(
    cost: StepCost, most: float, num_prompt_tokens: int, num_output_tokens: int
) -> None:
    """p99 time to first token of a tenant that uses an eighth of the engine, beside one that asks for five times as
    much as there is: it waits for the step that is under way and for its own, and for little else. Where steps are of
    one length that is less than twice as long as alone; where their prompts make them longer, they are full ones now.
    """
    capacity_rps = MAX_NUM_SEQS / (50 * cost.of(MAX_NUM_SEQS, MAX_NUM_SEQS * 2.5, 0))
    quiet = Load(QUIET, capacity_rps / 8, 100, 40)
    flood = Load(FLOOD, 5 * capacity_rps, num_prompt_tokens, num_output_tokens)
    alone = [each for seed in range(3) for each in ttft_s([quiet], cost, seed)["quiet"]]
    beside = [each for seed in range(3) for each in ttft_s([quiet, flood], cost, seed)["quiet"]]

    assert len(alone) - 3 <= len(beside) <= len(alone)
    assert np.percentile(beside, 99) <= most * np.percentile(alone, 99)
