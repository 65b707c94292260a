"""Tiny GGUF models, written from transformers models the way llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from torch import Tensor
from transformers import PreTrainedModel

Array = npt.NDArray[np.float32]
Q = GGMLQuantizationType
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def quantized_in_place(model: PreTrainedModel, kind: GGMLQuantizationType) -> None:
    """Round the model's matrices to what `kind` can hold, so that writing them as `kind` loses nothing more.

    Along the axis that the file's rows will have: GPT-2's matrices are stored the other way round.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                matrix = parameter.t() if _is_conv1d(name) else parameter
                rounded = torch.from_numpy(dequantize(quantize(matrix.numpy(), kind), kind))
                parameter.copy_(rounded.t() if _is_conv1d(name) else rounded)


def write_gguf(
    path: Path, model: PreTrainedModel, kind: GGMLQuantizationType = Q.F32, extra: dict[str, Tensor] | None = None
) -> Path:
    """`kind` is for matrices; norms and biases are float32, as llama.cpp has them. `extra` tensors are added."""
    architecture = ARCHITECTURES[model.config.model_type]
    writer = GGUFWriter(path, architecture)
    _write_fields(writer, model.config)
    for name, tensor in (model.state_dict() | (extra or {})).items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = _converted(name, tensor, model.config, architecture)
        target = kind if array.ndim == 2 else Q.F32
        data = quantize(array, target)
        writer.add_tensor(_gguf_name(name), data, raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_fields(writer: GGUFWriter, config: Any) -> None:
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)


def _converted(name: str, tensor: Tensor, config: Any, architecture: str) -> Array:
    if _is_conv1d(name):
        tensor = tensor.t()
    if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
    array: Array = tensor.contiguous().float().numpy()
    return array


def _is_conv1d(name: str) -> bool:
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def _gguf_name(name: str) -> str:
    names = GPT2_NAMES if name.startswith("transformer.") else LLAMA_NAMES
    module, _, kind = name.rpartition(".")
    if module in names:
        return f"{names[module]}.{kind}"
    parts = module.split(".")  # model.layers.0.self_attn.q_proj, transformer.h.0.attn.c_attn
    if parts[0] in ("model", "transformer"):
        return f"blk.{parts[2]}.{names['.'.join(parts[3:])]}.{kind}"
    return name
