"""What a GGUF file's metadata says of a model, and what is refused because it is not implemented."""

from __future__ import annotations

import pytest

from service.errors import UnsupportedModelError
from service.model.gguf_config import config_from_gguf
from service.model.hf_config import config_from_hf
from tests.model.tiny_models import SIZES, YARN


def metadata(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "general.architecture": "llama",
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.block_count": 1,
        "llama.feed_forward_length": 96,
        "llama.context_length": 128,
        "llama.vocab_size": 96,
    }
    return fields | {name.replace("__", "."): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general__architecture": "mamba"}, "'mamba'.*llama, qwen2"),
        ({"llama__expert_count": 8}, "llama.expert_count=8"),
        ({"llama__rope__dimension_count": 8}, "part of the head"),
        ({"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0}, "'longrope'"),
        ({"llama__attention__value_length": 8}, "different size"),
        ({"llama__attention__scale": 0.5}, "attention.scale"),
    ],
)
def test_metadata_that_is_not_implemented_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    """A GGUF model that would give other numbers than it should is refused, and the sentence says why."""
    assert config_from_gguf(metadata(), ()).hidden_size == 64
    with pytest.raises(UnsupportedModelError, match=named):
        config_from_gguf(metadata(**changes), ())


@pytest.mark.parametrize(
    ("gguf", "hf"),
    [
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope__scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 64,
            },
            YARN,
        ),
    ],
)
def test_rope_scaling_means_the_same_as_in_config_json(gguf: dict[str, object], hf: dict[str, object]) -> None:
    """GGUF metadata and config.json of the same model give the same rope."""
    ours = config_from_gguf(metadata(**{f"llama__{name}": value for name, value in gguf.items()}), ())
    assert ours.rope == config_from_hf({"architectures": ["LlamaForCausalLM"], **SIZES, "rope_parameters": hf}).rope
