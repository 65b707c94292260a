"""What a client is told does not depend on how the engine works: batches, chunks, blocks, drafts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.engine.runner_protocol import Runner
from service.engine.synthetic import SyntheticRunner
from service.model.loader import load_model
from service.types import FinishReason, GenerateRequest, SamplingParams, StepStats, TokenEvent, TokenLogprob
from tests.engine.fakes import (
    FakeClock,
    HistoryRunner,
    Says,
    expected_output,
    next_token_id,
    output,
    repetitive_token_id,
    request,
    run,
    steps,
)
from tests.engine.strategies import engine_configs, sampling_params, token_ids
from tests.model.tiny_models import configs, random_model, saved

REFERENCE_PROMPT = tuple(range(11))


@given(
    config=engine_configs(),
    block_size=st.integers(1, 5),
    num_spare_blocks=st.integers(0, 6),
    neighbours=st.lists(token_ids(max_size=10), max_size=4),
    warm=st.booleans(),
    says=st.sampled_from([next_token_id, repetitive_token_id]),
)
@settings(deadline=None, max_examples=150)
def test_nothing_changes_the_tokens(
    config: EngineConfig, block_size: int, num_spare_blocks: int, neighbours: list[list[int]], warm: bool, says: Says
) -> None:
    """Chunks, blocks, preemption, prefix hits, drafts, neighbours: a request gets the tokens it gets alone."""
    num_blocks = -(-24 // block_size) + num_spare_blocks
    runner = HistoryRunner(num_blocks=num_blocks, block_size=block_size, max_model_len=24, says=says)
    core = EngineCore(runner, config, FakeClock())
    if warm:
        run(core, request(*REFERENCE_PROMPT))

    others = [request(*prompt, max_tokens=12) for prompt in neighbours]
    mine = request(*REFERENCE_PROMPT, n=2, max_tokens=8)
    events = run(core, *others, mine)

    for index in range(2):
        assert output(events, mine.request_id, index) == expected_output(REFERENCE_PROMPT, 8, says)
    for other in others:
        assert output(events, other.request_id) == expected_output(other.prompt_token_ids, 12, says)


TINY_VOCAB = 96


class Told(NamedTuple):
    """All that a client is told of a sequence, however it is cut into events."""

    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None
    finish_reason: FinishReason | None
    error: str | None


def told(events: Iterable[TokenEvent]) -> dict[tuple[str, int], Told]:
    by_sequence: dict[tuple[str, int], list[TokenEvent]] = {}
    for event in events:
        by_sequence.setdefault((event.request_id, event.index), []).append(event)
    return {
        key: Told(
            tuple(token_id for event in mine for token_id in event.token_ids),
            tuple(logprob for event in mine for logprob in event.logprobs),
            mine[0].prompt_logprobs,
            mine[-1].finish_reason,
            mine[-1].error,
        )
        for key, mine in by_sequence.items()
    }


def outcome(
    runner: Runner, num_speculative_tokens: int, asked: Sequence[GenerateRequest], *, budget: int = 32
) -> tuple[dict[tuple[str, int], Told], list[StepStats]]:
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=budget, num_speculative_tokens=num_speculative_tokens)
    core = EngineCore(runner, config, FakeClock())
    for each in asked:
        core.add(each)
    done = list(steps(core))
    core.check_integrity()
    assert core._blocks.usage == 0
    return told(event for events, _ in done for event in events), [stats for _, stats in done]


def num_accepted(all_stats: Iterable[StepStats]) -> int:
    return sum(accepted for stats in all_stats for _, accepted in stats.drafts)


@dataclass
class Modulo:
    """A grammar: the sum of an output's last token and the next is no multiple of `divisor`.

    Its matcher fails where it is asked for anything but more of the same output.
    """

    divisor: int
    vocab_size: int
    seen: tuple[int, ...] = ()

    def matcher(self) -> Modulo:
        return Modulo(self.divisor, self.vocab_size)

    def mask(self, output_token_ids: Sequence[int]) -> bytes:
        assert tuple(output_token_ids[: len(self.seen)]) == self.seen, "another output"
        self.seen = tuple(output_token_ids)
        last = self.seen[-1] if self.seen else 0
        bits = sum(1 << i for i in range(self.vocab_size) if (last + i) % self.divisor)
        return bits.to_bytes(-(-self.vocab_size // 8), "little")


@st.composite
def requests(draw: st.DrawFn, *, vocab_size: int, max_tokens: int) -> list[GenerateRequest]:
    """A few, of repetitive prompts, with anything that can be asked for."""
    asked = []
    for i in range(draw(st.integers(1, 3))):
        sampling = draw(sampling_params(vocab_size=vocab_size, max_tokens=max_tokens))
        sampling = replace(sampling, prompt_logprobs=draw(st.sampled_from([None, 0, 2])))
        if is_constrained := draw(st.booleans()):
            sampling = replace(sampling, min_tokens=0)
        asked.append(
            GenerateRequest(
                request_id=f"{i}",
                prompt_token_ids=tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))),
                sampling=sampling,
                n=draw(st.integers(1, 2)),
                grammar=Modulo(draw(st.integers(2, 3)), vocab_size) if is_constrained else None,
                arrival_at=100.0,
            )
        )
    return asked


@given(
    asked=requests(vocab_size=4, max_tokens=16),
    num_speculative_tokens=st.integers(1, 6),
    budget=st.integers(4, 24),
    num_output_tokens=st.sampled_from([None, 1, 9]),
)
@settings(max_examples=150)
def test_nothing_changes_with_the_synthetic_runner(
    asked: list[GenerateRequest], num_speculative_tokens: int, budget: int, num_output_tokens: int | None
) -> None:
    """Tokens, log-probabilities, ends and errors of every sequence are the same, however much is guessed."""
    runner = SyntheticRunner(vocab_size=4, num_blocks=64, num_output_tokens=num_output_tokens)

    speculated, _ = outcome(runner, num_speculative_tokens, asked, budget=budget)

    assert speculated == outcome(runner, 0, asked, budget=budget)[0]


@pytest.fixture(scope="module")
def tiny_runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    path = saved(random_model(configs()["llama"]), tmp_path_factory.mktemp("tiny"))
    model = load_model(path, dtype="float32", device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))
    return ModelRunner(model, num_blocks=64, max_model_len=256, eos_token_ids=frozenset({5}))


@pytest.mark.integration
@given(asked=requests(vocab_size=TINY_VOCAB, max_tokens=24), num_speculative_tokens=st.integers(1, 6))
@settings(max_examples=40)
def test_nothing_changes_with_a_model(
    tiny_runner: ModelRunner, asked: list[GenerateRequest], num_speculative_tokens: int
) -> None:
    """Greedy or seeded, with penalties, bias, stop tokens, grammars and log-probabilities: the same to the last bit."""
    speculated, _ = outcome(tiny_runner, num_speculative_tokens, asked)

    assert speculated == outcome(tiny_runner, 0, asked)[0]


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_repeats_itself_is_guessed(tiny_runner: ModelRunner, temperature: float) -> None:
    """The test before could not fail if nothing were ever accepted."""
    sampling = SamplingParams(
        max_tokens=40, temperature=temperature, top_k=2, seed=3, logit_bias=((7, 100.0), (8, 100.0)), logprobs=2
    )
    asked = [GenerateRequest(request_id="x", prompt_token_ids=(1, 2, 3), sampling=sampling, arrival_at=100.0)]
    speculated, all_stats = outcome(tiny_runner, 4, asked)

    assert speculated == outcome(tiny_runner, 0, asked)[0]
    assert num_accepted(all_stats) > 5
    assert len(all_stats) == 40 - num_accepted(all_stats)
