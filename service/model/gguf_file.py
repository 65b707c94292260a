"""The tensors of a GGUF file, dequantised by the `gguf` package and checked against the end of the file before that."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from service.errors import UnsupportedModelError
from service.gguf_header import TensorEntry, damaged_file, map_gguf, read_header


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    """Where a tensor lies: `shape` in PyTorch's order (slowest first), `offset` in bytes from the start of the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    num_bytes: int


class GGUFFile:
    """A mapped GGUF file: its `metadata` and its tensors.

    Raises ModelError if it is not one or is damaged, UnsupportedModelError for a version or tensor type that cannot
    be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = map_gguf(path)
        header = read_header(self._data, path)
        self.metadata = header.metadata
        self._tensors = {name: self._locate(name, entry, header.data_start) for name, entry in header.tensors.items()}

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str) -> Tensor:
        """The tensor as float32, dequantised, in memory of its own."""
        info = self._tensors[name]
        raw = np.frombuffer(self._data, np.uint8, info.num_bytes, info.offset)
        rows = raw.reshape(*info.shape[:-1], -1)
        try:
            values = dequantize(rows, info.kind)
        except NotImplementedError as error:
            message = f"{self._path}: tensor {name} has type {info.kind.name}, which is not supported."
            raise UnsupportedModelError(message) from error
        return torch.from_numpy(np.require(values, np.float32, ["W"])).view(info.shape)  # W: a copy of what is mapped

    def _locate(self, name: str, entry: TensorEntry, data_start: int) -> _TensorInfo:
        try:
            kind = GGMLQuantizationType(entry.type_id)
        except ValueError:
            message = f"{self._path}: tensor {name} has the unknown type {entry.type_id}."
            raise UnsupportedModelError(message) from None
        block_size, block_bytes = GGML_QUANT_SIZES[kind]
        shape, offset = entry.shape, data_start + entry.offset
        if not shape or shape[-1] % block_size:
            raise damaged_file(self._path, f"the shape {shape} of tensor {name} does not fit its type {kind.name}")
        num_bytes = prod(shape) // block_size * block_bytes
        if offset + num_bytes > len(self._data):
            raise damaged_file(self._path, f"tensor {name} lies past its end")
        return _TensorInfo(shape, kind, offset, num_bytes)
