"""The tensors of a GGUF file, checked against its end: as numbers (by the `gguf` package), or in their groups.

Layout of the groups: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from service.errors import UnsupportedModelError
from service.gguf_header import TensorEntry, damaged_file, map_gguf, read_header
from service.model.panels import GROUP, ZERO_CODE, Groups, QuantizedFormat

Kind = GGMLQuantizationType
KINDS: dict[QuantizedFormat, tuple[Kind, ...]] = {"int8": (Kind.Q8_0,), "int4": (Kind.Q4_0, Kind.Q4_1)}


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
        try:
            values = dequantize(self._rows(info), info.kind)
        except NotImplementedError as error:
            message = f"{self._path}: tensor {name} has type {info.kind.name}, which is not supported."
            raise UnsupportedModelError(message) from error
        return torch.from_numpy(np.require(values, np.float32, ["W"])).view(info.shape)  # W: a copy of what is mapped

    def read_groups(self, name: str, format_: QuantizedFormat) -> Groups | None:
        """The matrix as it is kept, if that is in such groups."""
        info = self._tensors[name]
        if info.kind not in KINDS[format_]:
            return None
        block_bytes = GGML_QUANT_SIZES[info.kind][1]
        blocks = torch.from_numpy(self._rows(info).copy()).view(info.shape[0], -1, block_bytes)
        num_codes = GROUP if format_ == "int8" else GROUP // 2
        numbers = blocks[:, :, :-num_codes].contiguous().view(torch.float16)
        scales, codes = numbers[:, :, 0], blocks[:, :, -num_codes:]
        if info.kind == Kind.Q8_0:
            return Groups((codes ^ ZERO_CODE).flatten(1), scales, None)  # two's complement, 128 added
        halves = torch.cat([codes & 15, codes >> 4], dim=2).flatten(1)
        return Groups(halves, scales, numbers[:, :, 1] if info.kind == Kind.Q4_1 else scales * -8)

    def _rows(self, info: _TensorInfo) -> npt.NDArray[np.uint8]:
        raw = np.frombuffer(self._data, np.uint8, info.num_bytes, info.offset)
        return raw.reshape(*info.shape[:-1], -1)

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
