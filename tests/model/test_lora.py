"""Adapters: they mean what merging them would mean, and no request notices those of others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Q
from torch.testing import assert_close

from service.model.transformer import Transformer
from tests.model.adapters import merge, modules_of, read, write_adapter
from tests.model.gguf_files import quantized_in_place, write_gguf
from tests.model.precisions import PRECISIONS, Precision, load_as
from tests.model.test_transformer import CONFIGS, PROMPT
from tests.model.tiny_models import Bench, configs, random_model, reference_logits, saved, tokens

CASES = ["llama", "llama-mqa", "llama-biases", "llama-odd-sizes", "mistral-window", "qwen2", "qwen3", "gpt2"]


def load(path: Path, cache: Path) -> Transformer:
    return load_as("float32", path, cache)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_an_adapter_is_its_product_in_the_weights(
    name: str, use_rslora: bool, tmp_path: Path, model_cache: Path
) -> None:
    """Logits equal those of transformers with W + scale · B · A, whole and in chunks."""
    reference = random_model(configs()[name])
    model = load(saved(reference, tmp_path / "base"), model_cache)
    directory = write_adapter(tmp_path / "a", modules_of(reference), rank=3, alpha=7, use_rslora=use_rslora)
    base = reference_logits(reference, PROMPT)
    merge(reference, directory, 7 / (math.sqrt(3) if use_rslora else 3))
    merged = reference_logits(reference, PROMPT)
    assert (merged - base).abs().mean() > 0.1, "an adapter that changes hardly anything proves nothing"

    adapter, bench = read(directory, model), Bench(model)

    assert_close(bench.whole(PROMPT, adapter), merged, rtol=2e-4, atol=2e-4)
    assert_close(bench.in_chunks(PROMPT, [33, 1, 1, 17, 18], adapter), merged, rtol=2e-4, atol=2e-4)
    assert_close(bench.whole(PROMPT), base, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("kinds", [("q_proj", "v_proj"), ("k_proj",), ("up_proj",), ("o_proj", "down_proj")])
def test_any_of_the_projections_may_be_adapted(kinds: tuple[str, ...], tmp_path: Path, model_cache: Path) -> None:
    """Of layers that are fused here the others stay as they are."""
    reference = random_model(configs()["llama"])
    model = load(saved(reference, tmp_path / "base"), model_cache)
    directory = write_adapter(tmp_path / "a", modules_of(reference, kinds), dtype=torch.float16)
    merge(reference, directory, 2.0)

    logits = Bench(model).whole(PROMPT, read(directory, model))

    assert_close(logits, reference_logits(reference, PROMPT), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_an_adapter_beside_a_gguf_model(name: str, tmp_path: Path, model_cache: Path) -> None:
    """Queries and keys that the file keeps permuted, and weights that it keeps in 4 bits, take adapters as well."""
    reference = random_model(configs()[name])
    quantized_in_place(reference, Q.Q4_1)
    model = load(write_gguf(tmp_path / "base.gguf", reference, Q.Q4_1), model_cache)
    directory = write_adapter(tmp_path / "a", modules_of(reference))
    merge(reference, directory, 2.0)

    logits = Bench(model).whole(PROMPT, read(directory, model))

    assert_close(logits, reference_logits(reference, PROMPT), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_mixed_batch_does_not_change_a_bit(
    name: str, precision: Precision, tmp_path: Path, model_cache: Path
) -> None:
    """Beside others with the same adapter, other ones of other ranks, or none, each has the bits it has alone."""
    reference = random_model(CONFIGS[name])
    model = load_as(precision, saved(reference, tmp_path / "base"), model_cache)
    modules = modules_of(reference)
    adapters = [
        None,
        *(
            read(write_adapter(tmp_path / str(i), modules, rank=rank, seed=i), model)
            for i, rank in enumerate((1, 8, 19))
        ),
    ]
    alone = [Bench(model, num_blocks=300).whole(PROMPT, adapter) for adapter in adapters]
    assert len({float(logits.float().sum()) for logits in alone}) == len(adapters)

    for num_neighbours in (1, 4, 30):
        bench = Bench(model, num_blocks=300, seed=num_neighbours)
        watched = [bench.stream(PROMPT, adapter=adapter) for adapter in adapters]
        others = [
            bench.stream(tokens(9 + i, seed=i), adapter=adapters[i % len(adapters)]) for i in range(num_neighbours)
        ]
        bench.step(*((other, len(other.token_ids) - 3) for other in others), *((stream, 31) for stream in watched))
        bench.step(*((stream, 1) for stream in watched), *((other, 1) for other in others))
        bench.step(*((stream, 38) for stream in reversed(watched)), *((other, 2) for other in others))
        for stream, logits in zip(watched, alone, strict=True):
            assert torch.equal(torch.stack(stream.logits), logits)


def test_equal_content_has_one_key(tmp_path: Path, model_cache: Path) -> None:
    """The key, by which the prefix cache knows an adapter, depends on its matrices and its scale, not on its name."""
    reference = random_model(configs()["llama"])
    model = load(saved(reference, tmp_path / "base"), model_cache)
    modules = modules_of(reference)
    keys = [
        read(write_adapter(tmp_path / "a", modules), model, "x").key,
        read(write_adapter(tmp_path / "b", modules), model, "y").key,
        read(write_adapter(tmp_path / "c", modules, alpha=9), model).key,
        read(write_adapter(tmp_path / "d", modules, seed=1), model).key,
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
