"""Our logits are transformers' logits: tiny random models of every architecture, float32, CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from service.model.loader import load_model
from service.model.transformer import Transformer
from tests.model.tiny_models import Bench, configs, random_model, reference_logits, saved, tokens

PROMPT = tokens(75)  # more than 4 blocks, more than one tile of attention keys, longer than any window
CASES = sorted(configs())


def load(path: Path, cache: Path, dtype: str = "float32") -> Transformer:
    assert dtype in ("float32", "bfloat16")
    return load_model(path, dtype="float32" if dtype == "float32" else "bfloat16", device="cpu", cache_dir=cache)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path, model_cache: Path) -> tuple[Bench, Tensor]:
    """(our model, the logits of PROMPT by transformers)."""
    reference = random_model(configs()[request.param])
    model = load(saved(reference, tmp_path), model_cache)
    return Bench(model), reference_logits(reference, PROMPT)


def check(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1, "a reference whose logits hardly differ proves nothing"
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_logits_equal_transformers(case: tuple[Bench, Tensor]) -> None:
    """The logits of every position equal transformers', computed whole, token by token and in uneven chunks."""
    bench, theirs = case
    check(bench.whole(PROMPT), theirs)
    check(bench.in_chunks(PROMPT, [1] * len(PROMPT)), theirs)
    check(bench.in_chunks(PROMPT, [33, 1, 1, 17, 23]), theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_logits_on_cuda_equal_transformers(name: str, tmp_path: Path, model_cache: Path) -> None:
    """The same code on a GPU gives the logits that transformers gives on the CPU."""
    reference = random_model(configs()[name])
    model = load_model(saved(reference, tmp_path), dtype="float32", device="cuda", cache_dir=model_cache)
    check(Bench(model).in_chunks(PROMPT, [33, 1, 1, 17, 23]), reference_logits(reference, PROMPT))


def test_sharded_checkpoint_gives_the_same_logits(tmp_path: Path, model_cache: Path) -> None:
    """A checkpoint split over several files loads like one in a single file."""
    reference = random_model(configs()["llama"])
    reference.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    check(Bench(load(tmp_path, model_cache)).whole(PROMPT), reference_logits(reference, PROMPT))


def test_bfloat16_stays_close_to_float32(tmp_path: Path, model_cache: Path) -> None:
    """In bfloat16 the logits are those of float32 but for rounding."""
    reference = random_model(configs()["llama"])
    ours = Bench(load(saved(reference, tmp_path), model_cache, "bfloat16")).whole(PROMPT)
    theirs = reference_logits(reference, PROMPT)
    assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_old_gpt2_files_without_prefix_load(tmp_path: Path, model_cache: Path) -> None:
    """The first GPT-2 files name their tensors without `transformer.` and hold the causal mask as a buffer."""
    reference = random_model(configs()["gpt2"])
    path = saved(reference, tmp_path) / "model.safetensors"
    old = {name.removeprefix("transformer."): tensor.clone() for name, tensor in load_file(path).items()}
    save_file({**old, "h.0.attn.bias": torch.ones(1, 1, 128, 128)}, path)
    check(Bench(load(tmp_path, model_cache)).whole(PROMPT), reference_logits(reference, PROMPT))
