"""A model's files, opened and checked: what they hold."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from service.errors import ModelError
from service.model.architecture import ModelConfig
from service.model.panels import Groups, QuantizedFormat
from service.model.recipe import Recipe


class TensorSource(Protocol):
    """The tensors of a file or of several."""

    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """PyTorch's order; costs no read of the data."""

    def read(self, name: str) -> Tensor:
        """The tensor on the CPU, in any floating-point dtype. Raises UnsupportedModelError for an unreadable type."""

    def read_groups(self, name: str, format_: QuantizedFormat) -> Groups | None:
        """The matrix as it is kept, if that is in such groups: nothing is rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model on disk, opened: its shape, its tensors, how to make ours from them. `files` are all it was read from."""

    config: ModelConfig
    source: TensorSource
    recipe: Recipe
    files: tuple[Path, ...]

    def shapes(self) -> dict[str, torch.Size]:
        """Our weights: name -> shape."""
        return {
            name: torch.Size((sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
            for name, parts in self.recipe.items()
        }

    def check(self, ignorable: Collection[str]) -> None:
        """Raises ModelError naming a tensor that is missing, has another shape, or is neither used nor `ignorable`."""
        wanted = {part.name: part for parts in self.recipe.values() for part in parts}
        present = set(self.source.names())
        where = self.files[0].parent if len(self.files) > 1 else self.files[0]
        for name, part in wanted.items():
            if name not in present:
                raise ModelError(f"{where} lacks the tensor {name}: it is incomplete or of another architecture.")
            shape = tuple(self.source.shape(name))
            if shape != part.file_shape:
                raise ModelError(f"{where}: the tensor {name} has shape {list(shape)}, not {list(part.file_shape)}.")
        unexpected = sorted(present - wanted.keys() - set(ignorable))
        if unexpected:
            raise ModelError(
                f"{where} has the tensor {unexpected[0]}, which {self.config.architecture} does not use"
                f" ({len(unexpected)} such): running without it would give wrong answers."
            )
