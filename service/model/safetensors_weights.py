"""A Hugging Face directory: config.json and safetensors, whole or in shards. Pickled weights are code: refused."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from service.json_object import read_json_object
from service.model.architecture import ModelConfig
from service.model.hf_config import config_from_hf
from service.model.panels import Groups, QuantizedFormat
from service.model.recipe import TensorNames, build_recipe
from service.model.weights import Checkpoint

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
READABLE_DTYPES = ("F32", "F16", "BF16")
# Buffers that old versions of transformers saved; they are computed, not learned.
COMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(bias|masked_bias))$")


LLAMA_NAMES = TensorNames(  # Mistral, Qwen2 and Qwen3 too
    model={"embedding": "model.embed_tokens", "final_norm": "model.norm", "lm_head": "lm_head"},
    layer={
        "attention_norm": ("model.layers.{i}.input_layernorm",),
        "qkv": tuple(f"model.layers.{{i}}.self_attn.{name}_proj" for name in "qkv"),
        "q_norm": ("model.layers.{i}.self_attn.q_norm",),
        "k_norm": ("model.layers.{i}.self_attn.k_norm",),
        "o": ("model.layers.{i}.self_attn.o_proj",),
        "mlp_norm": ("model.layers.{i}.post_attention_layernorm",),
        "gate_up": ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
        "down": ("model.layers.{i}.mlp.down_proj",),
    },
)


def gpt2_names(prefix: str) -> TensorNames:
    """GPT-2 keeps its matrices as [in, out], query, key and value fused. Old files lack the prefix `transformer.`."""
    return TensorNames(
        model={
            "embedding": f"{prefix}wte",
            "position_embedding": f"{prefix}wpe",
            "final_norm": f"{prefix}ln_f",
            "lm_head": "lm_head",
        },
        layer={
            "attention_norm": (f"{prefix}h.{{i}}.ln_1",),
            "qkv": (f"{prefix}h.{{i}}.attn.c_attn",),
            "o": (f"{prefix}h.{{i}}.attn.c_proj",),
            "mlp_norm": (f"{prefix}h.{{i}}.ln_2",),
            "up": (f"{prefix}h.{{i}}.mlp.c_fc",),
            "down": (f"{prefix}h.{{i}}.mlp.c_proj",),
        },
        is_transposed=True,
    )


def tensor_names(config: ModelConfig, *, gpt2_prefix: str = "transformer.") -> TensorNames:
    """What Hugging Face's files call the modules of such a model."""
    return gpt2_names(gpt2_prefix) if config.architecture == "GPT2LMHeadModel" else LLAMA_NAMES


def open_directory(directory: Path) -> Checkpoint:
    """Raises ModelNotFoundError, UnsupportedModelError or ModelError, saying which file or tensor is at fault."""
    config = config_from_hf(read_json_object(directory / "config.json"))
    source = SafetensorsSource(weight_files(directory))
    names = source.names()
    recipe = build_recipe(config, tensor_names(config, gpt2_prefix="" if "wte.weight" in names else "transformer."))
    checkpoint = Checkpoint(
        config=config, source=source, recipe=recipe, files=(directory / "config.json", *source.files)
    )
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    checkpoint.check(ignorable=tied | {name for name in names if COMPUTED.search(name)})
    return checkpoint


class SafetensorsSource:
    """The tensors of safetensors files, read through memory maps."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.files = files
        self._open: dict[str, Any] = {}  # the library's handles are untyped
        for path in self.files:
            try:
                shard: Any = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is damaged ({error}): delete it and download it again.") from error
            for name in shard.keys():  # noqa: SIM118 - a safe_open handle is no mapping
                if name in self._open:
                    raise ModelError(f"{path.parent}: the tensor {name} is in two files.")
                self._open[name] = shard

    def names(self) -> Collection[str]:
        return self._open.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open[name].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        kind = self._open[name].get_slice(name).get_dtype()
        if kind not in READABLE_DTYPES:
            supported = ", ".join(READABLE_DTYPES)
            raise UnsupportedModelError(f"The tensor {name} has type {kind}; supported are {supported}.")
        tensor: Tensor = self._open[name].get_tensor(name)
        return tensor

    def read_groups(self, name: str, format_: QuantizedFormat) -> Groups | None:  # noqa: ARG002
        return None


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The model's weights in `directory`. Raises ModelNotFoundError, UnsupportedModelError or ModelError."""
    if (directory / WHOLE).is_file():
        return (directory / WHOLE,)
    if not (directory / INDEX).is_file():
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        if pickled:
            raise UnsupportedModelError(
                f"{directory} has only pickled weights ({pickled[0]}), which can run code when loaded;"
                " convert them to safetensors."
            )
        raise ModelNotFoundError(f"{directory} has neither {WHOLE} nor {INDEX}.")
    shards = read_json_object(directory / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ModelError(f"{directory / INDEX} has no weight_map from tensor names to file names.")
    names = sorted(set(shards.values()))
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{directory / INDEX} names a file outside the directory: {name!r}.")
        if not (directory / name).is_file():
            raise ModelNotFoundError(f"{directory} lacks {name}, which {INDEX} names; the download is incomplete.")
    return tuple(directory / name for name in names)
