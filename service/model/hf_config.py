"""`ModelConfig` from a Hugging Face config.json, in the spellings of transformers 4 (rope_theta, rope_scaling) and 5
(rope_parameters). A field that would change the numbers is honoured or refused by name, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from service.errors import ModelError, UnsupportedModelError
from service.model.architecture import (
    SUPPORTED_ARCHITECTURES,
    Activation,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from service.model.fields import Fields

# Fields that change the numbers and are not implemented, with the only values under which they change nothing.
NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "attention_multiplier": (1, 1.0),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "embedding_multiplier": (1, 1.0),
    "final_logit_softcapping": (None,),
    "is_encoder_decoder": (False,),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (1, 1.0),
    "no_rope_layers": (None, []),
    "partial_rotary_factor": (None, 1, 1.0),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
    "residual_multiplier": (1, 1.0),
    "rope_interleaved": (None, False),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "use_mrope": (None, False),
}
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
ORIGIN = "config.json"


def config_from_hf(config: Mapping[str, object]) -> ModelConfig:
    """Raises UnsupportedModelError naming what is not implemented, ModelError for a missing or malformed field."""
    architecture = _architecture(config)
    for name, neutral in NEUTRAL_VALUES.items():
        if name in config and config[name] not in neutral:
            raise UnsupportedModelError(f"{ORIGIN}: {name}={config[name]!r} is not supported.")
    fields = Fields(config, ORIGIN)
    return _gpt2(fields) if architecture == "GPT2LMHeadModel" else _llama_like(architecture, fields)


def _architecture(config: Mapping[str, object]) -> str:
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if architecture not in SUPPORTED_ARCHITECTURES:
        supported = ", ".join(SUPPORTED_ARCHITECTURES)
        raise UnsupportedModelError(f"The architecture {architecture!r} is not supported; supported are {supported}.")
    return str(architecture)


def _gpt2(fields: Fields) -> ModelConfig:
    hidden_size, num_heads = fields.integer("n_embd"), fields.integer("n_head")
    return ModelConfig(
        architecture="GPT2LMHeadModel",
        hidden_size=hidden_size,
        num_layers=fields.integer("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=_head_dim(hidden_size, num_heads),
        intermediate_size=fields.integer("n_inner", 4 * hidden_size),
        vocab_size=fields.integer("vocab_size"),
        max_position=fields.integer("n_positions"),
        norm="layer",
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        activation=_activation(fields.text("activation_function", "gelu_new")),
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        qk_norm=False,
        rope=None,
        tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        sliding_window=None,
    )


def _llama_like(architecture: str, fields: Fields) -> ModelConfig:
    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    is_qwen2, is_qwen3 = architecture == "Qwen2ForCausalLM", architecture == "Qwen3ForCausalLM"
    is_llama = architecture == "LlamaForCausalLM"
    attention_bias = fields.flag("attention_bias", False) if is_llama or is_qwen3 else False
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=fields.optional_integer("head_dim") or (128 if is_qwen3 else _head_dim(hidden_size, num_heads)),
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position=fields.integer("max_position_embeddings"),
        norm="rms",
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=_gated_activation(fields.text("hidden_act", "silu")),
        qkv_bias=attention_bias or is_qwen2,
        o_bias=attention_bias,
        mlp_bias=fields.flag("mlp_bias", False) if is_llama else False,
        qk_norm=is_qwen3,
        rope=_rope(fields),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        sliding_window=_sliding_window(architecture, fields),
    )


def _head_dim(hidden_size: int, num_heads: int) -> int:
    if hidden_size % num_heads:
        raise ModelError(f"{ORIGIN}: the hidden size {hidden_size} is no multiple of {num_heads} attention heads.")
    return hidden_size // num_heads


def _activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"The activation {name!r} is not supported; supported are {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]


def _gated_activation(name: str) -> Activation:
    if name not in ("silu", "swish"):
        raise UnsupportedModelError(f"The activation {name!r} in a gated MLP is not supported; supported is silu.")
    return "silu"


def _sliding_window(architecture: str, fields: Fields) -> int | None:
    """One window for all layers, or None. Layers that differ are refused."""
    if architecture == "LlamaForCausalLM":
        return None  # transformers' Llama has no such field
    if architecture == "MistralForCausalLM" and "sliding_window" not in fields.names():
        return 4096  # absent is not null: transformers' default
    window = fields.optional_integer("sliding_window")
    if architecture == "MistralForCausalLM":
        return window
    if not fields.flag("use_sliding_window", False) or window is None:
        return None
    num_layers = fields.integer("num_hidden_layers")
    kinds = fields.get("layer_types")
    if kinds is None:
        first = fields.get("max_window_layers")
        if not isinstance(first, int):
            raise ModelError(f"{ORIGIN}: max_window_layers must be an integer, but is {first!r}.")
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    distinct = {str(kind) for kind in kinds} if isinstance(kinds, list) else {repr(kinds)}
    if distinct == {"sliding_attention"}:
        return window
    if distinct == {"full_attention"}:
        return None
    raise UnsupportedModelError(f"Layers of different attention ({', '.join(sorted(distinct))}) are not supported.")


def _rope(fields: Fields) -> RopeConfig:
    parameters = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ModelError(f"{ORIGIN}: the rope parameters must be an object, but are {parameters!r}.")
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedModelError("Rotary positions on a part of the head (partial_rotary_factor) are not supported.")
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedModelError("Rope parameters that differ between layers are not supported.")
    rope = Fields(parameters, f"{ORIGIN}: rope")
    theta = rope.optional_number("rope_theta") or fields.number("rope_theta", 10000.0)
    kind = rope.text("rope_type", rope.text("type", "default"))
    return RopeConfig(theta=theta, scaling=_rope_scaling(kind, rope, fields))


def _rope_scaling(kind: str, rope: Fields, fields: Fields) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(factor=rope.number("factor"))
    original = fields.optional_integer("original_max_position_embeddings") or rope.integer(
        "original_max_position_embeddings", fields.integer("max_position_embeddings")
    )
    if kind == "llama3":
        return Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_position=original,
        )
    if kind == "yarn":
        for name in ("mscale", "mscale_all_dim"):
            if rope.get(name) is not None:
                raise UnsupportedModelError(f"{ORIGIN}: the yarn parameter {name} is not supported.")
        factor = rope.number("factor")
        return YarnScaling(
            factor=factor,
            original_max_position=original,
            attention_factor=rope.optional_number("attention_factor") or yarn_attention_factor(factor),
            beta_fast=rope.number("beta_fast", 32.0),
            beta_slow=rope.number("beta_slow", 1.0),
            truncate=rope.flag("truncate", True),
        )
    raise UnsupportedModelError(
        f"The rope type {kind!r} is not supported; supported are default, linear, llama3, yarn."
    )


def yarn_attention_factor(factor: float) -> float:
    """Equation 22 of https://arxiv.org/abs/2309.00071."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
