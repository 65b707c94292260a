"""What models take, by the service's own arithmetic and their published shapes: the table in k8s/README.md."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from service.model.architecture import ModelConfig
from service.model.hf_config import config_from_hf
from service.model.kv_cache import KVCache
from service.model.panels import Groups, QuantizedFormat
from service.model.recipe import build_recipe
from service.model.safetensors_weights import LLAMA_NAMES
from service.model.weights import Checkpoint

GIB = 2**30
# Ray's own processes, Python, torch and its buffers: 0.8 GiB with the default model, and room to move.
OVERHEAD_GIB = 2
# Tokens whose keys and values a replica should have room for: sixteen requests of two thousand.
KV_TOKENS = 32768


@dataclass(frozen=True, slots=True)
class Shape:
    """`config.json` of a model on the hub, as far as its size depends on it."""

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    is_tied: bool

    def config(self) -> ModelConfig:
        return config_from_hf(
            {
                "architectures": [self.architecture],
                "hidden_size": self.hidden_size,
                "num_hidden_layers": self.num_layers,
                "num_attention_heads": self.num_heads,
                "num_key_value_heads": self.num_kv_heads,
                "head_dim": self.head_dim,
                "intermediate_size": self.intermediate_size,
                "vocab_size": self.vocab_size,
                "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1e5,
                "hidden_act": "silu",
                "tie_word_embeddings": self.is_tied,
            }
        )


LLAMA, QWEN3 = "LlamaForCausalLM", "Qwen3ForCausalLM"
SHAPES = {
    "SmolLM2-135M-Instruct (default)": Shape(LLAMA, 576, 30, 9, 3, 64, 1536, 49152, is_tied=True),
    "SmolLM2-1.7B-Instruct": Shape(LLAMA, 2048, 24, 32, 32, 64, 8192, 49152, is_tied=True),
    "Qwen3-0.6B": Shape(QWEN3, 1024, 28, 16, 8, 128, 3072, 151936, is_tied=True),
    "Qwen3-4B": Shape(QWEN3, 2560, 36, 32, 8, 128, 9728, 151936, is_tied=True),
    "Llama-3.2-1B-Instruct": Shape(LLAMA, 2048, 16, 32, 8, 64, 8192, 128256, is_tied=True),
    "Llama-3.1-8B-Instruct": Shape(LLAMA, 4096, 32, 32, 8, 128, 14336, 128256, is_tied=False),
}


class NoTensors:
    """A `TensorSource` of a model that is not here."""

    def names(self) -> Collection[str]:
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        raise KeyError(name)

    def read(self, name: str) -> Tensor:
        raise KeyError(name)

    def read_groups(self, name: str, format_: QuantizedFormat) -> Groups | None:
        raise KeyError(name)


def table() -> str:
    """Markdown: weights in bfloat16, bytes of keys and values for a token, and what a replica's pod should ask for."""
    lines = [
        "| model | weights | KV cache, a token | `HEADCOUNT_KV_CACHE_GIB` | memory of a worker | or GPU memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        weights, per_token = _weight_bytes(shape.config()), _kv_bytes(shape.config())
        kv_gib = math.ceil(per_token * KV_TOKENS / GIB)
        memory = math.ceil(weights / GIB + kv_gib + OVERHEAD_GIB)
        gpu = math.ceil(weights / GIB + kv_gib + 1)
        lines.append(
            f"| {name} | {weights / GIB:.2f} GiB | {per_token / 1024:g} KiB | {kv_gib} | {memory}Gi | {gpu} GiB |"
        )
    return "\n".join(lines)


def _weight_bytes(config: ModelConfig) -> int:
    checkpoint = Checkpoint(config=config, source=NoTensors(), recipe=build_recipe(config, LLAMA_NAMES), files=())
    return sum(shape.numel() for shape in checkpoint.shapes().values()) * torch.bfloat16.itemsize


def _kv_bytes(config: ModelConfig) -> int:
    return KVCache.bytes_per_block(
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        block_size=1,
        dtype=torch.bfloat16,
    )
