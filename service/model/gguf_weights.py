"""A GGUF file as a checkpoint: llama.cpp's tensor names, and what its converter did to the tensors undone."""

from __future__ import annotations

from pathlib import Path

from service.model.architecture import ModelConfig
from service.model.gguf_config import config_from_gguf
from service.model.gguf_file import GGUFFile
from service.model.recipe import TensorNames, build_recipe
from service.model.weights import Checkpoint


def open_gguf(path: Path) -> Checkpoint:
    """Raises UnsupportedModelError or ModelError, saying which field or tensor is at fault."""
    file = GGUFFile(path)
    config = config_from_gguf(file.metadata, file.names())
    names = gguf_names(config, is_interleaved=file.metadata["general.architecture"] == "llama")
    checkpoint = Checkpoint(config=config, source=file, recipe=build_recipe(config, names), files=(path,))
    checkpoint.check(ignorable=())
    return checkpoint


def gguf_names(config: ModelConfig, *, is_interleaved: bool) -> TensorNames:
    """`is_interleaved`: llama.cpp's converter permutes the queries and keys of its architecture `llama`, no other's."""
    query, key = "blk.{i}.attn_q", "blk.{i}.attn_k"
    is_fused = config.architecture == "GPT2LMHeadModel"
    return TensorNames(
        model={
            "embedding": "token_embd",
            "position_embedding": "position_embd",
            "rope_factors": "rope_freqs",
            "final_norm": "output_norm",
            "lm_head": "output",
        },
        layer={
            "attention_norm": ("blk.{i}.attn_norm",),
            "qkv": ("blk.{i}.attn_qkv",) if is_fused else (query, key, "blk.{i}.attn_v"),
            "q_norm": ("blk.{i}.attn_q_norm",),
            "k_norm": ("blk.{i}.attn_k_norm",),
            "o": ("blk.{i}.attn_output",),
            "mlp_norm": ("blk.{i}.ffn_norm",),
            "gate_up": ("blk.{i}.ffn_gate", "blk.{i}.ffn_up"),
            "up": ("blk.{i}.ffn_up",),
            "down": ("blk.{i}.ffn_down",),
        },
        interleaved_heads={query: config.num_heads, key: config.num_kv_heads} if is_interleaved else {},
    )
