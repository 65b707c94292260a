"""Reading a GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.

The header is outside input. Every read is checked against the end of the file, so a hostile or cut header ends in a
ModelError and costs no more time or memory than walking the file once. Values of arrays (the vocabulary) are skipped,
only their length is kept: this takes milliseconds where the `gguf` package's own reader takes seconds. Dequantisation
is that package's.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from torch import Tensor

from service.errors import ModelError, UnsupportedModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
STRING, ARRAY = 8, 9
SCALAR_FORMATS: Mapping[int, str] = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}


@dataclass(frozen=True, slots=True)
class ArrayField:
    """An array of the metadata; only its length is read."""

    length: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `shape` in PyTorch's order (slowest first), `offset` in bytes from the start of the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    num_bytes: int


class GGUFFile:
    """A mapped GGUF file: its metadata `fields` and its tensors.

    Raises ModelError if it is not one or is damaged, UnsupportedModelError for a version or tensor type that cannot
    be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise ModelError(f"{path} cannot be read: {error}.") from error
        header = _Header(self._data, path)
        self.fields: Mapping[str, str | int | float | bool | ArrayField] = header.fields
        self._tensors = header.tensors

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


class _Header:
    """A cursor over the header; reading it all is what the constructor does."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0
        if self._take(4) != MAGIC:
            raise ModelError(f"{path} is not a GGUF file.")
        version = self._scalar("<I")
        if version not in VERSIONS:
            raise UnsupportedModelError(f"{path} has GGUF version {version}; supported are 2 and 3, little-endian.")
        num_tensors, num_fields = self._scalar("<Q"), self._scalar("<Q")
        self.fields: dict[str, str | int | float | bool | ArrayField] = {}
        for _ in range(num_fields):
            name = self._string()
            self.fields[name] = self._value(self._scalar("<I"))
        pending = [self._tensor() for _ in range(num_tensors)]
        self.tensors = self._place(pending)

    def _fail(self, what: str) -> ModelError:
        return ModelError(f"{self._path} is damaged: {what}; delete it and download it again.")

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise self._fail("its header points past its end")
        self._at += count
        return self._data[self._at - count : self._at]

    def _scalar(self, layout: str) -> int:
        """An integer; `_value` reads the other scalars."""
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        return int(value)

    def _string(self) -> str:
        return self._take(self._scalar("<Q")).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> str | int | float | bool | ArrayField:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            return self._skip_array()
        layout = self._layout(kind)
        (value,) = struct.unpack(layout, self._take(struct.calcsize(layout)))
        if not isinstance(value, int | float):
            raise self._fail("a metadata value has no number")
        return value

    def _layout(self, kind: int) -> str:
        if kind not in SCALAR_FORMATS:
            raise self._fail(f"a metadata value has the unknown type {kind}")
        return SCALAR_FORMATS[kind]

    def _skip_array(self) -> ArrayField:
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if kind == ARRAY:
            raise UnsupportedModelError(f"{self._path}: arrays of arrays in the metadata are not supported.")
        if kind != STRING:
            self._take(length * struct.calcsize(self._layout(kind)))
            return ArrayField(length)
        data, at, end = self._data, self._at, len(self._data)
        read_length = struct.Struct("<Q").unpack_from
        for _ in range(length):  # the vocabulary: 10⁵ strings, hence no call per string
            if at + 8 > end:
                raise self._fail("its header points past its end")
            at += 8 + read_length(data, at)[0]
        if at > end:
            raise self._fail("its header points past its end")
        self._at = at
        return ArrayField(length)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape, type, offset into the data section) of the next tensor."""
        name = self._string()
        num_dimensions = self._scalar("<I")
        if num_dimensions > MAX_DIMENSIONS:
            raise self._fail(f"tensor {name} has {num_dimensions} dimensions")
        dimensions = [self._scalar("<Q") for _ in range(num_dimensions)]
        return name, tuple(reversed(dimensions)), self._scalar("<I"), self._scalar("<Q")

    def _place(self, pending: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, TensorInfo]:
        """Resolve types and offsets now that the end of the header, hence the start of the data, is known."""
        alignment = self.fields.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise self._fail(f"general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, type_id, offset in pending:
            try:
                kind = GGMLQuantizationType(type_id)
            except ValueError:
                raise UnsupportedModelError(f"{self._path}: tensor {name} has the unknown type {type_id}.") from None
            block_size, block_bytes = GGML_QUANT_SIZES[kind]
            if not shape or shape[-1] % block_size:
                raise self._fail(f"the shape {shape} of tensor {name} does not fit its type {kind.name}")
            num_bytes = prod(shape) // block_size * block_bytes
            if start + offset + num_bytes > len(self._data):
                raise self._fail(f"tensor {name} lies past its end")
            if name in tensors:
                raise self._fail(f"it has two tensors named {name}")
            tensors[name] = TensorInfo(shape, kind, start + offset, num_bytes)
        return tensors
