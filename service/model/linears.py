"""The linear layers of a model from its prepared weights: by our own kernels where this machine has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from service.model import native_build
from service.model.linear import Linear
from service.model.native_linear import NativeWeight
from service.model.panels import GROUP, Format
from service.model.stored import EMBEDDING, StoredWeight, is_linear

logger = logging.getLogger(__name__)

HEAD = "lm_head"


def load_linears(
    stored: Mapping[str, StoredWeight], weights: Mapping[str, Tensor], device: torch.device, cache_dir: Path
) -> dict[str, Linear]:
    """Layers by name, the output layer last. `weights` was stored of `stored`; what is not packed is on `device`."""
    matrices = {name.removesuffix(".weight"): name for name, weight in stored.items() if is_linear(name, weight.shape)}
    matrices[HEAD] = matrices.pop(HEAD, EMBEDDING)
    formats = {stored[name].format for name in matrices.values()}
    library = native_build.load(native_build.LINEAR, cache_dir) if formats != {None} and device.type == "cpu" else None
    if formats & {"int8", "int4"}:
        _say_what_is_not_quantized([stored[name] for name in matrices.values()], has_kernels=library is not None)

    def weight(name: str) -> Tensor | NativeWeight:
        if stored[name].format is None:
            return weights[name]
        packed = stored[name].packed(weights[name])
        if library is None or _is_left_to_onednn(packed.format):
            return packed.values().to(device)
        return NativeWeight(packed, library)

    return {
        module: Linear(weight(name), weights.get(f"{module}.bias"), name=module) for module, name in matrices.items()
    }


def _say_what_is_not_quantized(matrices: Sequence[StoredWeight], *, has_kernels: bool) -> None:
    num_plain = sum(weight.format is None for weight in matrices)
    if not has_kernels:
        logger.warning("Quantized weights are kept in bfloat16 here, which takes more memory and time.")
    elif num_plain:
        logger.warning(
            "%d of %d linear layers stay in bfloat16: their number of inputs is no multiple of %d.",
            *(num_plain, len(matrices), GROUP),
        )


def _is_left_to_onednn(format_: Format) -> bool:
    """It has kernels for matrix units, which ours do not use."""
    return format_ == "bfloat16" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
