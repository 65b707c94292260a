"""Batch invariance (P1): the bits of a token's logits depend on nothing computed beside it, nor on chunks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, LlamaConfig, Qwen3Config

from service.model.attention import SequenceSpan
from service.model.inputs import ModelInputs
from service.model.transformer import Transformer
from tests.model.precisions import PRECISIONS, Precision, load_as
from tests.model.strategies import chunkings
from tests.model.tiny_models import SIZES, Bench, random_model, saved, tokens

PROMPT = tokens(70)
# Widths that are and are not multiples of a vector, so that both kinds of operators are tried.
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-odd": LlamaConfig(**{**SIZES, "hidden_size": 60, "intermediate_size": 1000, "head_dim": 10}),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "gpt2": GPT2Config(vocab_size=96, n_positions=128, n_embd=64, n_layer=2, n_head=4, n_inner=1000),
}
Make = Callable[[str, Precision], Transformer]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Make:
    def load(name: str, precision: Precision) -> Transformer:
        path = saved(random_model(CONFIGS[name]), tmp_path_factory.mktemp(name))
        return load_as(precision, path, model_cache)

    return load


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_neighbours_do_not_change_a_bit(make: Make, name: str, precision: Precision) -> None:
    """A sequence's logits are the same alone and among 1 to 40 others that prefill and decode beside it."""
    bench = Bench(make(name, precision), num_blocks=400)
    alone = bench.whole(PROMPT)
    for num_neighbours in (1, 2, 7, 40):
        stream = bench.stream(PROMPT)
        neighbours = [bench.stream(tokens(9 + i, seed=i)) for i in range(num_neighbours)]
        bench.step(*((neighbour, len(neighbour.token_ids) - 3) for neighbour in neighbours), (stream, 31))
        bench.step(*((neighbour, 1) for neighbour in neighbours), (stream, 1))
        bench.step((stream, 38), *((neighbour, 2) for neighbour in neighbours))
        assert torch.equal(torch.stack(stream.logits), alone)
        bench = Bench(bench.model, num_blocks=400, seed=num_neighbours)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_chunking_does_not_change_a_bit(make: Make, name: str, precision: Precision) -> None:
    """However a prompt is cut into steps, its logits are the same."""
    model = make(name, precision)
    whole = Bench(model).whole(PROMPT)

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None, derandomize=True)
    @given(chunkings(len(PROMPT)), st.integers(0, 10**6))
    def holds(chunks: list[int], seed: int) -> None:
        assert torch.equal(Bench(model, seed=seed).in_chunks(PROMPT, chunks), whole)

    holds()


def test_only_the_rows_asked_for_get_logits(make: Make) -> None:
    """`logits_rows` picks rows of the batch, in its order; none asked for gives none, and still fills the cache."""
    bench = Bench(make("llama", "float32"))
    whole = bench.whole(PROMPT)
    table = bench.stream(PROMPT).block_table

    def forward(first: int, last: int, rows: list[int]) -> torch.Tensor:
        positions = torch.arange(first, last)
        inputs = ModelInputs(
            token_ids=torch.tensor(PROMPT[first:last]),
            positions=positions,
            slot_mapping=torch.tensor([table[i // 16] * 16 + i % 16 for i in range(first, last)]),
            logits_rows=torch.tensor(rows, dtype=torch.int64),
            attention=bench.model.plan([SequenceSpan(last - first, last, table)]),
        )
        return bench.model.forward(inputs, bench.cache)

    assert forward(0, 50, []).shape == (0, 96)
    assert torch.equal(forward(50, 70, [19, 0]), whole[[69, 50]])
