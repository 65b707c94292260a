"""A recipe says, for each weight of a network under our own name, which tensors of a file make it up.

Names are the only thing formats differ in, so a format is a table of names (`TensorNames`) and the recipe follows
from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from service.model.architecture import ModelConfig

FREQUENCY_FACTORS = "rope_factors.weight"  # always float32; see RopeConfig.has_frequency_factors


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a file and what was done to it there.

    `shape` is ours, after undoing: `is_transposed` (GPT-2 keeps [in, out]), `interleaved_heads` n > 0 (llama.cpp stores
    each of n heads with the two halves that rotary positions pair interleaved).
    """

    name: str
    shape: tuple[int, ...]
    is_transposed: bool = False
    interleaved_heads: int = 0

    @property
    def file_shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.shape)) if self.is_transposed else self.shape

    def restore(self, tensor: Tensor) -> Tensor:
        """The file's tensor as we use it."""
        if self.is_transposed:
            tensor = tensor.t()
        if self.interleaved_heads:
            paired = tensor.reshape(self.interleaved_heads, -1, 2, *tensor.shape[1:])
            tensor = paired.transpose(1, 2).reshape(tensor.shape)
        return tensor


Recipe = Mapping[str, tuple[Part, ...]]  # our name -> parts, one below the other


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """What a file format calls our modules: `{i}` stands for the layer.

    `model` and `layer` map our module to theirs, several where the file keeps apart what we fuse. `is_transposed`
    holds for the linear layers. `interleaved_heads` maps their module to its number of heads.
    """

    model: Mapping[str, str]
    layer: Mapping[str, tuple[str, ...]]
    is_transposed: bool = False
    interleaved_heads: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Module:
    """A weight [sum(sizes), num_inputs], or [sum(sizes)] with num_inputs 0, and perhaps a bias [sum(sizes)]."""

    name: str
    sizes: tuple[int, ...]
    num_inputs: int
    has_bias: bool


def build_recipe(config: ModelConfig, names: TensorNames) -> Recipe:
    """Every weight that `config` needs, in the order in which they are stored and mapped."""
    recipe: dict[str, tuple[Part, ...]] = {}
    if config.rope is not None and config.rope.has_frequency_factors:
        # First, because a float32 weight behind an odd number of 16-bit values would not be aligned.
        recipe[FREQUENCY_FACTORS] = (Part(f"{names.model['rope_factors']}.weight", (config.head_dim // 2,)),)
    for module in _model_modules(config):
        theirs = names.model[module.name]
        recipe[f"{module.name}.weight"] = (Part(f"{theirs}.weight", _shape(module.sizes[0], module.num_inputs)),)
        if module.has_bias:
            recipe[f"{module.name}.bias"] = (Part(f"{theirs}.bias", module.sizes),)
    for i in range(config.num_layers):
        for module in _layer_modules(config):
            ours = f"layers.{i}.{module.name}"
            recipe[f"{ours}.weight"] = tuple(_parts(module, names, i, "weight"))
            if module.has_bias:
                recipe[f"{ours}.bias"] = tuple(_parts(module, names, i, "bias"))
    return recipe


def _parts(module: _Module, names: TensorNames, layer: int, kind: str) -> Iterator[Part]:
    theirs = names.layer[module.name]
    sizes = module.sizes if len(theirs) > 1 else (sum(module.sizes),)  # one of theirs: fused already
    num_inputs = module.num_inputs if kind == "weight" else 0
    for name, size in zip(theirs, sizes, strict=True):
        yield Part(
            f"{name.format(i=layer)}.{kind}",
            _shape(size, num_inputs),
            is_transposed=names.is_transposed and num_inputs > 0,
            interleaved_heads=names.interleaved_heads.get(name, 0),
        )


def _shape(size: int, num_inputs: int) -> tuple[int, ...]:
    return (size, num_inputs) if num_inputs else (size,)


def _model_modules(config: ModelConfig) -> Iterator[_Module]:
    yield _Module("embedding", (config.vocab_size,), config.hidden_size, has_bias=False)
    if config.rope is None:
        yield _Module("position_embedding", (config.max_position,), config.hidden_size, has_bias=False)
    yield _Module("final_norm", (config.hidden_size,), 0, config.norm == "layer")
    if not config.tie_word_embeddings:
        yield _Module("lm_head", (config.vocab_size,), config.hidden_size, has_bias=False)


def _layer_modules(config: ModelConfig) -> Iterator[_Module]:
    hidden, query, kv, inner = config.hidden_size, config.query_size, config.kv_size, config.intermediate_size
    norm_bias = config.norm == "layer"
    yield _Module("attention_norm", (hidden,), 0, norm_bias)
    yield _Module("qkv", (query, kv, kv), hidden, config.qkv_bias)
    if config.qk_norm:
        yield _Module("q_norm", (config.head_dim,), 0, has_bias=False)
        yield _Module("k_norm", (config.head_dim,), 0, has_bias=False)
    yield _Module("o", (hidden,), query, config.o_bias)
    yield _Module("mlp_norm", (hidden,), 0, norm_bias)
    if config.gated_mlp:
        yield _Module("gate_up", (inner, inner), hidden, config.mlp_bias)
    else:
        yield _Module("up", (inner,), hidden, config.mlp_bias)
    yield _Module("down", (hidden,), inner, config.mlp_bias)
