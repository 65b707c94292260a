"""P1: greedy tokens are the same however a request is batched, chunked, cached or preempted. Real model and engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.engine.stream import merge
from service.model.transformer import Transformer
from service.types import FinishReason, GenerateRequest, SamplingParams, TokenEvent
from tests.model.adapters import default_model_modules, read, write_adapter
from tests.model.precisions import load_as

pytestmark = pytest.mark.integration

NUM_OUTPUT_TOKENS = 20
Tokens = tuple[int, ...]


@pytest.fixture(scope="module", params=["bfloat16", "float32", "int4"])
def model(
    request: pytest.FixtureRequest, default_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Transformer:
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("cache")
    return load_as(request.param, default_model_path, cache)


def engine(
    model: Transformer, *, num_blocks: int = 400, budget: int = 256, prefix_caching: bool = True, num_drafted: int = 0
) -> EngineCore:
    runner = ModelRunner(model, num_blocks=num_blocks, max_model_len=1024, eos_token_ids=frozenset({2}))
    config = EngineConfig(
        max_num_seqs=16,
        max_num_batched_tokens=budget,
        prefix_caching=prefix_caching,
        num_speculative_tokens=num_drafted,
    )
    return EngineCore(runner, config, clock=lambda: 0.0)


def request(name: str, prompt: Tokens, num_output_tokens: int = NUM_OUTPUT_TOKENS) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=num_output_tokens, temperature=0.0, ignore_eos=True)
    return GenerateRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, arrival_at=0.0)


def run(
    core: EngineCore, requests: Iterable[GenerateRequest], every_step: Callable[[int], None] = lambda step: None
) -> dict[str, list[int]]:
    """The output of each request; `every_step` is called with the number of steps taken so far, before each."""
    outputs: dict[str, list[int]] = {}
    for new in requests:
        outputs[new.request_id] = []
        core.add(new)
    step = 0
    while core.has_work:
        every_step(step)
        for event in core.step().events:
            assert event.finish_reason is not FinishReason.ERROR, event.error
            outputs.setdefault(event.request_id, []).extend(event.token_ids)
        step += 1
    core.check_integrity()
    return outputs


@pytest.fixture(scope="module")
def prompts() -> list[Tokens]:
    """Sixteen prompts of 3 to 90 tokens; the first is the one that is watched."""
    rng = random.Random(5)
    lengths = [61, 3, 17, 90, 33, 5, 48, 64, 16, 70, 9, 25, 80, 40, 12, 31]
    return [tuple(rng.randrange(300, 40000) for _ in range(length)) for length in lengths]


@pytest.fixture(scope="module")
def alone(model: Transformer, prompts: list[Tokens]) -> list[int]:
    output = run(engine(model), [request("watched", prompts[0])])["watched"]
    assert len(set(output)) > 3, "a constant output would prove nothing"
    return output


def test_among_fifteen_others(model: Transformer, prompts: list[Tokens], alone: list[int]) -> None:
    """Neighbours of other lengths, in the same steps, change nothing."""
    assert run(engine(model), [request(str(i), prompt) for i, prompt in enumerate(prompts)])["0"] == alone


@pytest.mark.parametrize("budget", [16, 17, 30, 61])
def test_with_any_chunk_size(model: Transformer, prompts: list[Tokens], alone: list[int], budget: int) -> None:
    """A prompt computed in chunks gives what it gives whole."""
    assert run(engine(model, budget=budget), [request("watched", prompts[0])])["watched"] == alone


def test_after_a_prefix_hit(model: Transformer, prompts: list[Tokens], alone: list[int]) -> None:
    """Blocks that another request computed are as good as one's own."""
    core = engine(model)
    run(core, [request("other", prompts[0][:50] + prompts[1])])
    core.add(request("watched", prompts[0]))
    first = core.step()
    assert first.stats.num_prefix_hit_tokens == 48
    assert [*first.events[0].token_ids, *run(core, [])["watched"]] == alone


def test_after_preemption(model: Transformer, prompts: list[Tokens], alone: list[int]) -> None:
    """A sequence that lost its blocks and was computed again goes on as if nothing had been."""
    core = engine(model, num_blocks=8, prefix_caching=False)
    num_preemptions = 0
    outputs: dict[str, list[int]] = {"old": [], "watched": []}
    core.add(request("old", prompts[4], 60))
    core.add(request("watched", prompts[0]))
    while core.has_work:
        result = core.step()
        num_preemptions += result.stats.num_preemptions
        for event in result.events:
            outputs[event.request_id] += event.token_ids
    assert num_preemptions > 0
    assert outputs["watched"] == alone


def test_beside_an_aborted_neighbour(model: Transformer, prompts: list[Tokens], alone: list[int]) -> None:
    """A neighbour that is aborted in the middle leaves no trace."""
    core = engine(model)

    def abort_some(step: int) -> None:
        if step in (2, 5, 9):
            core.abort(str(step))

    assert run(core, [request(str(i), prompt) for i, prompt in enumerate(prompts)], abort_some)["0"] == alone


def test_seeded_sampling_does_not_depend_on_neighbours(model: Transformer, prompts: list[Tokens]) -> None:
    """With a seed, sampled tokens too are the same alone and in a crowd."""
    sampling = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True)
    watched = GenerateRequest(request_id="watched", prompt_token_ids=prompts[0], sampling=sampling, arrival_at=0.0)
    crowd = [request(str(i), prompt) for i, prompt in enumerate(prompts[1:])]
    assert run(engine(model), [*crowd, watched])["watched"] == run(engine(model), [watched])["watched"]


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_with_drafts(model: Transformer, prompts: list[Tokens], temperature: float) -> None:
    """Texts that repeat are guessed right, beside one that does not, and tokens and log-probabilities are the same."""
    texts = [prompts[1] * 8, prompts[5] * 5, prompts[0]]
    sampling = SamplingParams(max_tokens=40, temperature=temperature, seed=3, ignore_eos=True, logprobs=2)
    asked = [
        GenerateRequest(request_id=str(i), prompt_token_ids=text, sampling=sampling, arrival_at=0.0)
        for i, text in enumerate(texts)
    ]
    told: list[dict[str, TokenEvent]] = []
    num_accepted = 0
    for num_drafted in (0, 4):
        core = engine(model, num_drafted=num_drafted)
        for each in asked:
            core.add(each)
        events: dict[str, list[TokenEvent]] = {}
        while core.has_work:
            new, stats = core.step()
            num_accepted += sum(accepted for _, accepted in stats.drafts)
            for event in new:
                events.setdefault(event.request_id, []).append(event)
        told.append({name: merge(mine) for name, mine in events.items()})

    assert told[0] == told[1]
    assert num_accepted > 0


def test_among_requests_with_other_adapters(
    model: Transformer, prompts: list[Tokens], alone: list[int], tmp_path: Path
) -> None:
    """With each adapter and with none: alone, in one batch, in chunks, and after prefix hits the same."""
    modules = default_model_modules()
    some = {name: shape for name, shape in modules.items() if name.endswith(("q_proj", "v_proj"))}
    adapters = (
        None,
        read(write_adapter(tmp_path / "all", modules, rank=8, alpha=4, seed=1), model),
        read(write_adapter(tmp_path / "some", some, rank=3, alpha=6, seed=2), model),
    )
    asked = [
        replace(request(f"{i}/{j}", prompt, 8), adapter=adapter)
        for i, prompt in enumerate((prompts[0], prompts[0][:50] + prompts[1]))
        for j, adapter in enumerate(adapters)
    ]
    apart = {each.request_id: run(engine(model), [each])[each.request_id] for each in asked}
    assert apart["0/0"] == alone[:8], "the model as it is"
    assert len({tuple(output) for output in apart.values()}) == len(asked)
    core = engine(model, budget=37)
    assert run(core, asked) == apart
    assert run(core, asked) == apart, "after prefix hits"
