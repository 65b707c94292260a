"""config.json: both spellings mean the same, and nothing that changes the numbers is passed over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.errors import ModelError, UnsupportedModelError
from service.model.architecture import LinearScaling, Llama3Scaling, YarnScaling
from service.model.hf_config import config_from_hf
from tests.model.tiny_models import LLAMA3, SIZES, YARN, configs

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], **SIZES}
QWEN2: dict[str, Any] = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
MISTRAL: dict[str, Any] = {**LLAMA, "architectures": ["MistralForCausalLM"]}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 96,
    "n_positions": 128,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
}


@pytest.mark.parametrize("parameters", [LLAMA3, YARN, {"rope_type": "linear", "rope_theta": 7.0, "factor": 2.0}])
def test_old_and_new_rope_spellings_mean_the_same(parameters: dict[str, Any]) -> None:
    """transformers 4 has rope_theta beside rope_scaling (`type` before 4.43), transformers 5 one rope_parameters."""
    new = config_from_hf({**LLAMA, "rope_parameters": parameters})
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    oldest = {**scaling, "type": scaling["rope_type"]}
    del oldest["rope_type"]
    for spelling in (scaling, oldest):
        assert config_from_hf({**LLAMA, "rope_theta": parameters["rope_theta"], "rope_scaling": spelling}) == new
    assert new.rope is not None
    assert isinstance(new.rope.scaling, LinearScaling | Llama3Scaling | YarnScaling)


def test_defaults_are_transformers() -> None:
    """Fields that old files lack take the value that transformers gives them."""
    llama = config_from_hf({key: value for key, value in LLAMA.items() if key != "num_key_value_heads"})
    assert llama.num_kv_heads == llama.num_heads
    assert llama.rope is not None
    assert (llama.rope.theta, llama.rope.scaling, llama.tie_word_embeddings) == (10000.0, None, False)
    assert config_from_hf(MISTRAL).sliding_window == 4096
    assert config_from_hf({**MISTRAL, "sliding_window": None}).sliding_window is None
    assert config_from_hf(GPT2).tie_word_embeddings


def test_what_transformers_writes_can_be_read() -> None:
    """Every configuration of the golden tests survives its JSON form."""
    for name, config in configs().items():
        written = json.loads(config.to_json_string(use_diff=False))
        written["architectures"] = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
        if name.startswith("gpt2"):
            written["architectures"] = ["GPT2LMHeadModel"]
        assert config_from_hf(written).num_layers == 2


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**LLAMA, "architectures": ["FalconForCausalLM"]}, "'FalconForCausalLM'.*LlamaForCausalLM, Mistral"),
        ({**LLAMA, "architectures": None}, "None"),
        ({**LLAMA, "quantization_config": {"quant_method": "awq"}}, "quantization_config.*awq"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({**LLAMA, "hidden_act": "gelu"}, "'gelu'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope'"),
        ({**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({**LLAMA, "rope_parameters": {**YARN, "mscale": 0.7}}, "mscale"),
        ({**LLAMA, "rope_parameters": {"full_attention": YARN}}, "differ between layers"),
        ({**LLAMA, "rope_interleaved": True}, "rope_interleaved"),
        ({**QWEN2, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "different attention"),
        (
            {**QWEN2, "use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention", "chunked"]},
            "chunked, full_attention",
        ),
        ({**GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({**GPT2, "activation_function": "quick_gelu"}, "'quick_gelu'"),
        ({**GPT2, "add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    """A model that would give other numbers than it should is refused, and the sentence says why."""
    with pytest.raises(UnsupportedModelError, match=named):
        config_from_hf(config)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be an integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 5000}, "5000 layers"),
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"hidden_act": 3}, "hidden_act"),
        ({"rope_scaling": "linear"}, "rope parameters"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope: factor is missing"),
        ({"num_attention_heads": 3}, "no multiple of 3"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot be shared by 3"),
        ({"head_dim": 7}, "even head size"),
    ],
)
def test_malformed_fields_are_named(change: dict[str, Any], named: str) -> None:
    """A missing, mistyped, absurd or contradictory field ends in one sentence that names it."""
    with pytest.raises(ModelError, match=named):
        config_from_hf({**LLAMA, **change})
