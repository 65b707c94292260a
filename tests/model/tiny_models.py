"""Tiny random transformers models, and our model run over the paged cache in any shape of batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from service.model.attention import SequenceSpan
from service.model.inputs import ModelInputs
from service.model.kv_cache import KVCache
from service.model.lora import LoraAdapter, lora_rows
from service.model.transformer import Transformer

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOW = 8


def configs() -> dict[str, PreTrainedConfig]:
    """Every architecture and every choice it offers that changes the numbers."""
    linear: dict[str, Any] = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
    loose_yarn: dict[str, Any] = {
        **YARN,
        "truncate": False,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
    }
    windowed: dict[str, Any] = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}
    gpt2: dict[str, Any] = {"vocab_size": 96, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}
    return {
        "llama": LlamaConfig(**SIZES),
        "llama-mha": LlamaConfig(**{**SIZES, "num_key_value_heads": 4}),
        "llama-mqa": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
        "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
        "llama-biases": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
        "llama-odd-sizes": LlamaConfig(**{**SIZES, "hidden_size": 60, "intermediate_size": 100, "head_dim": 10}),
        "llama-linear-rope": LlamaConfig(**SIZES, rope_parameters=linear),
        "llama3": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
        "llama-yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
        "llama-yarn-options": LlamaConfig(**SIZES, rope_parameters=loose_yarn),
        "mistral": MistralConfig(**SIZES, sliding_window=None),
        "mistral-window": MistralConfig(**SIZES, sliding_window=WINDOW),
        "qwen2": Qwen2Config(**SIZES),
        "qwen2-window": Qwen2Config(**SIZES, **windowed),
        "qwen3": Qwen3Config(**SIZES, head_dim=32),
        "qwen3-tied-biases": Qwen3Config(**SIZES, head_dim=32, attention_bias=True, tie_word_embeddings=True),
        "gpt2": GPT2Config(**gpt2),
        "gpt2-erf-untied": GPT2Config(**gpt2, activation_function="gelu", n_inner=96, tie_word_embeddings=False),
    }


def random_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """Every parameter random, biases and norms too, and large enough for logits that differ."""
    auto: Any = AutoModelForCausalLM  # untyped
    model: PreTrainedModel = auto.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            is_scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(noise + 1.0 if is_scale else noise)
    return model


def saved(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def reference_logits(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """[num_tokens, vocab_size] by transformers."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([token_ids])).logits[0].float()
    return logits


class Stream:
    """One sequence in a paged cache: its tokens, its shuffled blocks, how far it is computed, its logits so far."""

    def __init__(self, token_ids: Sequence[int], block_table: Sequence[int], adapter: LoraAdapter | None) -> None:
        self.token_ids = list(token_ids)
        self.adapter = adapter
        self.block_table = list(block_table)
        self.num_computed = 0
        self.logits: list[Tensor] = []


class Bench:
    """A model, a cache, and sequences that advance in whatever batches a test asks for."""

    def __init__(self, model: Transformer, num_blocks: int = 64, seed: int = 0) -> None:
        self.model = model
        self.cache: KVCache = model.new_kv_cache(num_blocks)
        self._free = random.Random(seed).sample(range(num_blocks), num_blocks)

    def stream(
        self, token_ids: Sequence[int], capacity: int | None = None, adapter: LoraAdapter | None = None
    ) -> Stream:
        """A sequence with blocks for `capacity` tokens (default: as many as it has)."""
        num_blocks = -(-(capacity or len(token_ids)) // self.model.block_size)
        return Stream(token_ids, [self._free.pop() for _ in range(num_blocks)], adapter)

    def step(self, *work: tuple[Stream, int]) -> None:
        """Compute the next n tokens of each stream, in one batch; keeps the logits of every row."""
        spans: list[SequenceSpan] = []
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for stream, count in work:
            span = range(stream.num_computed, stream.num_computed + count)
            spans.append(SequenceSpan(count, span.stop, stream.block_table))
            tokens += [stream.token_ids[i] for i in span]
            positions += span
            size = self.model.block_size
            slots += [stream.block_table[i // size] * size + i % size for i in span]
        device = self.model.device
        inputs = ModelInputs(
            token_ids=torch.tensor(tokens, device=device),
            positions=torch.tensor(positions, device=device),
            slot_mapping=torch.tensor(slots, device=device),
            logits_rows=torch.arange(len(tokens), device=device),
            attention=self.model.plan(spans),
            lora=lora_rows([(stream.adapter, count) for stream, count in work], self.model.ops, device),
        )
        rows = iter(self.model.forward(inputs, self.cache))
        for stream, count in work:
            stream.logits += [next(rows).cpu() for _ in range(count)]
            stream.num_computed += count

    def whole(self, token_ids: Sequence[int], adapter: LoraAdapter | None = None) -> Tensor:
        """Logits [num_tokens, vocab_size] of a sequence computed alone, in one step."""
        return self.in_chunks(token_ids, [len(token_ids)], adapter)

    def in_chunks(self, token_ids: Sequence[int], chunks: Sequence[int], adapter: LoraAdapter | None = None) -> Tensor:
        stream = self.stream(token_ids, adapter=adapter)
        for count in chunks:
            self.step((stream, count))
        return torch.stack(stream.logits)


def tokens(count: int, seed: int = 0, vocab_size: int = 96) -> list[int]:
    return [random.Random(f"{seed}/{i}").randrange(vocab_size) for i in range(count)]
