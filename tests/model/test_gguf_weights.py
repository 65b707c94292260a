"""GGUF models give transformers' logits: every architecture, every kind of quantisation that can be written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Q
from torch.testing import assert_close
from transformers import LlamaConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from service.errors import ModelError
from service.model.gguf_weights import open_gguf
from service.model.loader import load_model
from tests.model.gguf_files import quantized_in_place, write_gguf
from tests.model.tiny_models import LLAMA3, SIZES, Bench, configs, random_model, reference_logits, tokens

PROMPT = tokens(40)
ARCHITECTURES = ["llama", "llama-tied", "llama-biases", "mistral", "qwen2", "qwen3", "gpt2"]
KINDS = [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1]


def check(config: PreTrainedConfig, kind: Q, tmp_path: Path, cache: Path) -> None:
    reference = random_model(config)
    quantized_in_place(reference, kind)
    path = write_gguf(tmp_path / "model.gguf", reference, kind)
    ours = Bench(load_model(path, dtype="float32", device="cpu", cache_dir=cache)).whole(PROMPT)
    assert_close(ours, reference_logits(reference, PROMPT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str, tmp_path: Path, model_cache: Path) -> None:
    """llama.cpp's names, its permuted queries and keys, its transposed GPT-2 are all undone."""
    check(configs()[name], Q.F32, tmp_path, model_cache)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_quantisation(kind: Q, tmp_path: Path, model_cache: Path) -> None:
    """A quantised file gives the logits of its dequantised weights."""
    check(configs()["llama"], kind, tmp_path, model_cache)


def test_frequency_factors_stand_for_llama3_scaling(tmp_path: Path, model_cache: Path) -> None:
    """The converter replaces Llama 3's rope scaling by a tensor of divisors."""
    scaled = LlamaConfig(**SIZES, rope_parameters=LLAMA3)
    reference = random_model(scaled)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))
    unscaled = 1.0 / 10000.0 ** (torch.arange(0, 16, 2) / 16)
    path = write_gguf(tmp_path / "m.gguf", reference, extra={"rope_freqs.weight": unscaled / frequencies})
    ours = Bench(load_model(path, dtype="float32", device="cpu", cache_dir=model_cache)).whole(PROMPT)
    assert_close(ours, reference_logits(reference, PROMPT), rtol=1e-4, atol=1e-4)


def test_a_tensor_nobody_uses_is_an_error(tmp_path: Path) -> None:
    """Running without a tensor that the file holds would give wrong answers."""
    reference = random_model(configs()["llama"])
    path = write_gguf(tmp_path / "m.gguf", reference, extra={"blk.0.attn_sinks.weight": torch.zeros(4)})
    with pytest.raises(ModelError, match=r"blk\.0\.attn_sinks\.weight"):
        open_gguf(path)
