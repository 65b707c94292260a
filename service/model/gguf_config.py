"""`ModelConfig` from the metadata of a GGUF file (keys as llama.cpp writes them)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from service.errors import ModelError, UnsupportedModelError
from service.gguf_header import ArrayField
from service.model.architecture import LinearScaling, ModelConfig, RopeConfig, RopeScaling, YarnScaling
from service.model.fields import Fields
from service.model.hf_config import yarn_attention_factor

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",  # Mistral too
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
# Keys (after the architecture's name) that change the numbers and are not implemented, unless zero or absent.
UNSUPPORTED_KEYS = (
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.scaling.yarn_log_multiplier",
)


def config_from_gguf(fields: Mapping[str, object], tensor_names: Collection[str]) -> ModelConfig:
    """`tensor_names` says what the metadata does not: biases, a tied output, frequency factors.

    Raises UnsupportedModelError naming what is not implemented, ModelError for a missing or malformed field.
    """
    name = fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModelError(f"The GGUF architecture {name!r} is not supported; supported are {supported}.")
    for key in UNSUPPORTED_KEYS:
        if fields.get(f"{name}.{key}"):
            raise UnsupportedModelError(f"GGUF: {name}.{key}={fields[f'{name}.{key}']!r} is not supported.")
    is_gpt2 = name == "gpt2"
    metadata = Fields({key.removeprefix(f"{name}."): value for key, value in fields.items()}, f"GGUF: {name}")
    hidden_size, num_heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    head_dim = metadata.integer("attention.key_length", max(hidden_size // num_heads, 1))
    if metadata.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError("GGUF: keys and values of different size are not supported.")
    return ModelConfig(
        architecture=ARCHITECTURES[name],
        hidden_size=hidden_size,
        num_layers=metadata.integer("block_count"),
        num_heads=num_heads,
        num_kv_heads=metadata.integer("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        intermediate_size=metadata.integer("feed_forward_length"),
        vocab_size=_vocab_size(metadata),
        max_position=metadata.integer("context_length"),
        norm="layer" if is_gpt2 else "rms",
        norm_eps=metadata.number("attention.layer_norm_epsilon" if is_gpt2 else "attention.layer_norm_rms_epsilon"),
        activation="gelu_tanh" if is_gpt2 else "silu",
        qkv_bias="blk.0.attn_q.bias" in tensor_names or "blk.0.attn_qkv.bias" in tensor_names,
        o_bias="blk.0.attn_output.bias" in tensor_names,
        mlp_bias="blk.0.ffn_up.bias" in tensor_names,
        qk_norm="blk.0.attn_q_norm.weight" in tensor_names,
        rope=None if is_gpt2 else _rope(metadata, head_dim, "rope_freqs.weight" in tensor_names),
        tie_word_embeddings="output.weight" not in tensor_names,
        sliding_window=metadata.optional_integer("attention.sliding_window"),
    )


def _vocab_size(metadata: Fields) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    return metadata.integer("vocab_size", tokens.length if isinstance(tokens, ArrayField) else None)


def _rope(metadata: Fields, head_dim: int, has_frequency_factors: bool) -> RopeConfig:
    if metadata.integer("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError("GGUF: rotary positions on a part of the head are not supported.")
    return RopeConfig(
        theta=metadata.number("rope.freq_base", 10000.0),
        scaling=_rope_scaling(metadata),
        has_frequency_factors=has_frequency_factors,
    )


def _rope_scaling(metadata: Fields) -> RopeScaling | None:
    kind = metadata.text("rope.scaling.type", "none")
    old_factor = metadata.optional_number("rope.scale_linear")  # files from before rope.scaling.*
    if kind == "none":
        return LinearScaling(factor=old_factor) if old_factor not in (None, 1.0) else None
    factor = metadata.number("rope.scaling.factor")
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "yarn":
        for key in ("yarn_ext_factor", "yarn_attn_factor"):
            if metadata.number(f"rope.scaling.{key}", 1.0) != 1.0:
                raise UnsupportedModelError(f"GGUF: rope.scaling.{key} other than 1 is not supported.")
        if metadata.get("rope.scaling.original_context_length") is None:
            raise ModelError("GGUF: rope.scaling.original_context_length is missing.")
        return YarnScaling(
            factor=factor,
            original_max_position=metadata.integer("rope.scaling.original_context_length"),
            attention_factor=metadata.number("rope.scaling.attn_factor", 1.0) * yarn_attention_factor(factor),
            beta_fast=metadata.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=metadata.number("rope.scaling.yarn_beta_slow", 1.0),
        )
    raise UnsupportedModelError(f"The GGUF rope scaling {kind!r} is not supported; supported are none, linear, yarn.")
