"""What an encoder for embeddings looks like, read from its directory. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.embedding import Pooling
from service.errors import ModelError, UnsupportedModelError
from service.json_object import read_json_object
from service.model.architecture import MAX_LAYERS, Activation
from service.model.fields import Fields

ARCHITECTURES = ("BertModel",)  # MiniLM, BGE, E5, GTE and many more
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Fields that change the numbers and are not implemented, with the only values under which they change nothing.
NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "is_decoder": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
}
# What sentence-transformers calls the ways to pool, in the file beside the model.
POOLING_FILE = "1_Pooling/config.json"
POOLING_MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """A transformer in which every token sees all others, with learned positions, normalised after each block."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    num_token_types: int
    norm_eps: float
    activation: Activation
    pooling: Pooling

    @property
    def num_weights(self) -> int:
        """Of the linear layers."""
        return self.num_layers * self.hidden_size * (4 * self.hidden_size + 2 * self.intermediate_size)

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ModelError(f"The hidden size {self.hidden_size} is no multiple of {self.num_heads} attention heads.")
        if self.num_layers > MAX_LAYERS:
            raise ModelError(f"The model claims {self.num_layers} layers; at most {MAX_LAYERS} are supported.")


def is_encoder(path: Path) -> bool:
    """Whether the model at `path` is an encoder, of those that are supported."""
    file = path / "config.json"
    if not file.is_file():
        return False
    names = read_json_object(file).get("architectures")
    return isinstance(names, list) and bool(names) and names[0] in ARCHITECTURES


def read_encoder_config(directory: Path) -> EncoderConfig:
    """Raises UnsupportedModelError naming what is not implemented, ModelError for a missing or malformed field."""
    config = read_json_object(directory / "config.json")
    for name, neutral in NEUTRAL_VALUES.items():
        if name in config and config[name] not in neutral:
            raise UnsupportedModelError(f"config.json: {name}={config[name]!r} is not supported.")
    fields = Fields(config, "config.json")
    activation = fields.text("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"The activation {activation!r} is not supported; supported are {', '.join(ACTIVATIONS)}."
        )
    return EncoderConfig(
        hidden_size=fields.integer("hidden_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=fields.integer("num_attention_heads"),
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position=fields.integer("max_position_embeddings"),
        num_token_types=fields.integer("type_vocab_size", 2),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=ACTIVATIONS[activation],
        pooling=_pooling(directory),
    )


def _pooling(directory: Path) -> Pooling:
    """As the model was trained; mean, which is usual, where its files do not say."""
    file = directory / POOLING_FILE
    if not file.is_file():
        return "mean"
    described = read_json_object(file)
    modes = [name for name, value in described.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise UnsupportedModelError(f"{POOLING_FILE}: the pooling {' and '.join(modes) or 'none'} is not supported.")
    return POOLING_MODES[modes[0]]
