"""An adapter as PEFT saves it: a directory with adapter_config.json and adapter_model.safetensors.

Read for one base model, and checked against it: what would change the numbers is honoured or refused by name. Pickled
adapters are code: refused.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from service.json_object import read_json_object
from service.model.architecture import ModelConfig
from service.model.fields import Fields
from service.model.lora import LoraAdapter, LowRank, UpPart
from service.model.recipe import build_recipe
from service.model.safetensors_weights import SafetensorsSource, tensor_names
from service.model.transformer import Transformer

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
KEY_BYTES = 16
# Fields that change the numbers and are not implemented, with the only values under which they change nothing.
NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "alora_invocation_tokens": (None,),
    "alpha_pattern": (None, {}),
    "arrow_config": (None,),
    "bias": (None, "none"),
    # All others begin by changing the base model, which is then not the one that is served.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "lora_bias": (None, False),
    "megatron_config": (None,),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "peft_type": ("LORA",),
    "rank_pattern": (None, {}),
    "target_parameters": (None, []),
    "task_type": (None, "CAUSAL_LM"),
    "trainable_token_indices": (None, []),
    "use_bdlora": (None,),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "velora_config": (None,),
}
Side = Literal["A", "B"]
_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one of the file's modules lies in ours: columns of the output of the linear layer `linear`."""

    linear: str
    first_column: int
    num_columns: int
    num_inputs: int


def read_adapter(model: Transformer, directory: Path, name: str, *, max_rank: int) -> LoraAdapter:
    """The adapter in `directory`, for `model`.

    Raises ModelNotFoundError, UnsupportedModelError or ModelError, saying which file, field or tensor is at fault.
    """
    files = _files(directory)
    rank, scale = _rank_and_scale(files[0], max_rank)
    source = SafetensorsSource(files[1:])
    places = _places(model.config)
    modules = _modules(source, places, files[1])
    by_linear: dict[str, list[tuple[_Place, Tensor, Tensor]]] = {}
    for module in sorted(modules, key=lambda module: places[module].first_column):
        place = places[module]
        down = _read(source, modules[module], "A", (rank, place.num_inputs))
        up = _read(source, modules[module], "B", (place.num_columns, rank)).mul_(scale).t()
        by_linear.setdefault(place.linear, []).append((place, down.to(model.dtype), up.to(model.dtype)))
    deltas = {linear: model.ops.prepare_low_rank(_fused(parts, model.device)) for linear, parts in by_linear.items()}
    return LoraAdapter(name=name, key=_key(files), deltas=deltas)


def _files(directory: Path) -> tuple[Path, Path]:
    config, weights = directory / CONFIG, directory / WEIGHTS
    if not config.is_file():
        raise ModelNotFoundError(f"{directory} has no {CONFIG}, so it is no PEFT adapter.")
    if not weights.is_file() and (directory / PICKLED).exists():
        raise UnsupportedModelError(
            f"{directory} has only pickled weights ({PICKLED}), which can run code when loaded; convert them to"
            " safetensors."
        )
    if not weights.is_file():
        raise ModelNotFoundError(f"{directory} has no {WEIGHTS}.")
    return config, weights


def _rank_and_scale(path: Path, max_rank: int) -> tuple[int, float]:
    values = read_json_object(path)
    for name, neutral in NEUTRAL_VALUES.items():
        if values.get(name) not in neutral:
            raise UnsupportedModelError(f"{path}: {name}={values.get(name)!r} is not supported.")
    fields = Fields(values, str(path))
    rank, alpha = fields.integer("r"), fields.number("lora_alpha")
    if rank > max_rank:
        raise UnsupportedModelError(f"{path}: the rank r={rank} is above max_lora_rank, which is {max_rank}.")
    return rank, alpha / (math.sqrt(rank) if fields.flag("use_rslora", default=False) else rank)


def _places(config: ModelConfig) -> Mapping[str, _Place]:
    """The linear layers that an adapter may change, by their name in the file: all but the output layer."""
    places: dict[str, _Place] = {}
    for ours, parts in build_recipe(config, tensor_names(config)).items():
        linear, _, kind = ours.rpartition(".")
        if kind != "weight" or not linear.startswith("layers.") or len(parts[0].shape) != 2:  # noqa: PLR2004 - a matrix
            continue
        first_column = 0
        for part in parts:
            num_columns, num_inputs = part.shape
            places[part.name.removesuffix(".weight")] = _Place(linear, first_column, num_columns, num_inputs)
            first_column += num_columns
    return places


def _modules(source: SafetensorsSource, places: Mapping[str, _Place], path: Path) -> Mapping[str, Mapping[Side, str]]:
    """For each module that the adapter changes, the names of its two tensors."""
    modules: dict[str, dict[Side, str]] = {}
    for tensor in source.names():
        match = _TENSOR.fullmatch(tensor)
        if match is None or match["module"] not in places:
            raise UnsupportedModelError(
                f"{path} has the tensor {tensor}, which is no low-rank matrix of a layer that can be adapted here: the"
                " projections of attention and MLP in a model of the served one's shape."
            )
        modules.setdefault(match["module"], {})["A" if match["side"] == "A" else "B"] = tensor
    for module, sides in modules.items():
        if len(sides) == 1:
            raise ModelError(f"{path} has only one of the two matrices of {module}: it is incomplete.")
    if not modules:
        raise ModelError(f"{path} has no tensors.")
    return modules


def _read(source: SafetensorsSource, names: Mapping[Side, str], side: Side, shape: tuple[int, int]) -> Tensor:
    """A float32 copy of a tensor that must have `shape`."""
    name, path = names[side], source.files[0]
    if source.shape(name) != shape:
        raise ModelError(f"{path}: the tensor {name} has shape {list(source.shape(name))}, not {list(shape)}.")
    tensor = source.read(name).float().clone()
    if not tensor.isfinite().all():
        raise ModelError(f"{path}: the tensor {name} has values that are no finite numbers.")
    return tensor


def _fused(parts: list[tuple[_Place, Tensor, Tensor]], device: torch.device) -> LowRank:
    rank = parts[0][1].shape[0]
    return LowRank(
        down=torch.cat([down for _, down, _ in parts]).to(device),
        up=torch.cat([up.flatten() for _, _, up in parts]).to(device),
        parts=tuple(
            UpPart(place.first_column, place.num_columns, index * rank, rank)
            for index, (place, _, _) in enumerate(parts)
        ),
    )


def _key(files: tuple[Path, ...]) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, hashlib.blake2b).digest())
    return digest.digest()
