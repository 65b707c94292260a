"""What is kept of a model's weights once it is prepared: matrices packed for `linear.c` where it takes them.

Which do not depend on the machine, so that what is prepared serves any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from service.model.panels import (
    Format,
    Groups,
    PackedWeight,
    QuantizedFormat,
    is_packable,
    pack,
    pack_groups,
    packed_shape,
    quantize,
)
from service.model.recipe import FREQUENCY_FACTORS, Part
from service.model.weights import Checkpoint, TensorSource

Quantization = Literal["none", "int8", "int4"]
EMBEDDING, LM_HEAD = "embedding.weight", "lm_head.weight"
MATRIX = 2  # dimensions
LOOKED_UP = (EMBEDDING, "position_embedding.weight")  # by row, never multiplied


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """A weight made of `parts`, of `shape`, in `dtype`, and how it is packed: None for as it is."""

    parts: tuple[Part, ...]
    shape: torch.Size
    dtype: torch.dtype
    format: Format | None

    @property
    def stored_shape(self) -> torch.Size:
        return self.shape if self.format is None else packed_shape(self.format, *self.shape)

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.dtype if self.format is None else torch.uint8

    @property
    def num_bytes(self) -> int:
        return self.stored_shape.numel() * self.stored_dtype.itemsize

    def read(self, source: TensorSource) -> Tensor:
        """What is to be stored, contiguous."""
        if self.format is not None and self.format != "bfloat16":
            return pack_groups(_below_each_other([_groups(source, part, self.format) for part in self.parts]))
        pieces = [part.restore(source.read(part.name)).to(self.dtype) for part in self.parts]
        plain = torch.cat(pieces) if len(pieces) > 1 else pieces[0].contiguous()
        return plain if self.format is None else pack(plain)

    def packed(self, stored: Tensor) -> PackedWeight:
        assert self.format is not None
        return PackedWeight(self.format, self.shape[0], self.shape[1], stored)


def stored_weights(checkpoint: Checkpoint, dtype: torch.dtype, quantization: Quantization) -> dict[str, StoredWeight]:
    """All of a model that runs in `dtype`, by name, in the order in which they are stored. bfloat16 if quantized.

    An embedding that is the output layer too is there twice if it is packed, once by row and once as `lm_head`.
    """
    assert quantization == "none" or dtype == torch.bfloat16
    recipe = dict(checkpoint.recipe)
    shapes = checkpoint.shapes()
    if checkpoint.config.tie_word_embeddings and _format(LM_HEAD, shapes[EMBEDDING], dtype, quantization):
        recipe[LM_HEAD], shapes[LM_HEAD] = recipe[EMBEDDING], shapes[EMBEDDING]
    return {
        name: StoredWeight(
            parts=parts,
            shape=shapes[name],
            dtype=torch.float32 if name == FREQUENCY_FACTORS else dtype,
            format=_format(name, shapes[name], dtype, quantization),
        )
        for name, parts in recipe.items()
    }


def is_linear(name: str, shape: torch.Size) -> bool:
    """Whether a weight is multiplied by, as a matrix."""
    return len(shape) == MATRIX and name not in LOOKED_UP


def _format(name: str, shape: torch.Size, dtype: torch.dtype, quantization: Quantization) -> Format | None:
    if dtype != torch.bfloat16 or not is_linear(name, shape) or not is_packable(shape[1]):
        return None
    if quantization == "none":
        return "bfloat16"
    return "int8" if name == LM_HEAD else quantization  # where 4 bits cost most (docs/benchmarks.md)


def _groups(source: TensorSource, part: Part, format_: QuantizedFormat) -> Groups:
    """As the file has them if it does, else the nearest."""
    kept = None if part.is_transposed else source.read_groups(part.name, format_)
    if kept is None:
        return quantize(part.restore(source.read(part.name)), format_)
    minima = None if kept.minima is None else part.restore(kept.minima)
    return Groups(part.restore(kept.codes), part.restore(kept.scales), minima)


def _below_each_other(parts: list[Groups]) -> Groups:
    minima = [part.minima for part in parts if part.minima is not None]
    return Groups(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat(minima) if minima else None,
    )
