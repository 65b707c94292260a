"""Reads the header of a GGUF file: the metadata and the directory of the tensors.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.

The header is outside input: every length is checked against the end of the file before it is used, so a hostile or cut
header ends in a ModelError after at most one walk over the file.

Nearly all of a header is the vocabulary, 10⁵ strings that not every reader wants: arrays that the caller does not name
are walked over and only their length is kept. Either way takes milliseconds; the `gguf` package's own reader, which
makes numpy views of every string, takes seconds that every cold start would pay.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_ITEMS = 1 << 24  # in an array that is read: a Python value costs many times the bytes it takes in the file
_STRING, _ARRAY = 8, 9
_NUMBERS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32, _UINT64 = _NUMBERS[4], _NUMBERS[10]

Metadata = Mapping[str, object]
"""Values are str, int, float or bool; a list of these for an array that was asked for, an ArrayField for any other."""


@dataclass(frozen=True, slots=True)
class ArrayField:
    """An array of the metadata that was not asked for."""

    length: int


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What the directory says of a tensor, unchecked but for its number of dimensions.

    `shape` is in PyTorch's order (slowest first), `type_id` is ggml's, `offset` counts bytes from `data_start`.
    """

    shape: tuple[int, ...]
    type_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """`data_start` is where the tensors' data begin, in bytes from the start of the file."""

    metadata: Metadata
    tensors: Mapping[str, TensorEntry]
    data_start: int


def map_gguf(path: Path) -> mmap.mmap:
    """The bytes of a file, mapped read-only. Raises ModelNotFoundError, or ModelError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # mmap refuses a length of 0
        raise ModelError(f"{path} cannot be read: it is empty, not a complete GGUF file; download it again.") from error


def read_header(data: mmap.mmap, path: Path, *, arrays: Collection[str] = ()) -> GGUFHeader:
    """`data` is the file at `path`, which is for messages; `arrays` names the arrays whose values are wanted.

    Raises UnsupportedModelError for a version or an array of arrays, ModelError for what is damaged or no GGUF at all.
    """
    try:
        return _Cursor(data, path).header(arrays)
    except UnicodeDecodeError as error:
        raise damaged_file(path, f"its header has text that is not UTF-8 ({error.reason})") from error


def damaged_file(path: Path, what: str) -> ModelError:
    """The error for a GGUF file that contradicts itself: `what` is its sentence's middle."""
    return ModelError(f"{path} is damaged: {what}; delete it and download it again.")


class _Cursor:
    """Reads `data` from front to back and never past its end. Raises what `read_header` does, or UnicodeDecodeError."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def header(self, arrays: Collection[str]) -> GGUFHeader:
        if self._take(len(_MAGIC)) != _MAGIC:
            raise ModelError(f"{self._path} is not a GGUF file: its first four bytes are not GGUF.")
        version = self._integer(_UINT32)
        if version not in _VERSIONS:
            message = f"{self._path} has GGUF version {version}; supported are 2 and 3, little-endian."
            raise UnsupportedModelError(message)
        num_tensors, num_fields = self._integer(_UINT64), self._integer(_UINT64)
        metadata: dict[str, object] = {}
        for _ in range(num_fields):
            name = self._string()
            metadata[name] = self._value(is_wanted=name in arrays)
        tensors: dict[str, TensorEntry] = {}
        for _ in range(num_tensors):
            name = self._string()
            if name in tensors:
                raise damaged_file(self._path, f"it has two tensors named {name}")
            tensors[name] = self._tensor(name)
        return GGUFHeader(metadata, tensors, self._data_start(metadata))

    def _value(self, *, is_wanted: bool) -> object:
        kind = self._integer(_UINT32)
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array(is_wanted=is_wanted)
        return self._numbers(kind, 1)[0]

    def _array(self, *, is_wanted: bool) -> object:
        kind, length = self._integer(_UINT32), self._integer(_UINT64)
        if kind == _ARRAY:
            raise UnsupportedModelError(f"{self._path}: arrays of arrays in the metadata are not supported.")
        if is_wanted and length > _MAX_ITEMS:
            raise damaged_file(self._path, f"an array has {length} items, more than the {_MAX_ITEMS} that are read")
        if kind == _STRING:
            strings = self._strings(length, are_wanted=is_wanted)
            return strings if is_wanted else ArrayField(length)
        if is_wanted:
            return self._numbers(kind, length)
        self._skip(length * self._layout(kind).size)
        return ArrayField(length)

    def _strings(self, length: int, *, are_wanted: bool) -> list[str]:
        """The next `length` strings; [] if they are not wanted, only walked over. A call per string would be slow."""
        data, at, end, read_length = self._data, self._at, len(self._data), _UINT64.unpack_from
        strings = []
        for _ in range(length):
            start = at + _UINT64.size
            if start > end:
                raise self._too_short()
            at = start + read_length(data, at)[0]
            if are_wanted:
                strings.append(data[start:at].decode())
        if at > end:
            raise self._too_short()
        self._at = at
        return strings

    def _tensor(self, name: str) -> TensorEntry:
        num_dimensions = self._integer(_UINT32)
        if num_dimensions > _MAX_DIMENSIONS:
            raise damaged_file(self._path, f"tensor {name} has {num_dimensions} dimensions")
        dimensions = [self._integer(_UINT64) for _ in range(num_dimensions)]
        return TensorEntry(
            shape=tuple(reversed(dimensions)), type_id=self._integer(_UINT32), offset=self._integer(_UINT64)
        )

    def _data_start(self, metadata: Metadata) -> int:
        """Here, rounded up to the file's alignment."""
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment <= 0:
            raise damaged_file(self._path, f"general.alignment is {alignment!r}")
        return -(-self._at // alignment) * alignment

    def _string(self) -> str:
        return self._take(self._integer(_UINT64)).decode()

    def _integer(self, layout: struct.Struct) -> int:
        (value,) = layout.unpack(self._take(layout.size))
        return int(value)

    def _numbers(self, kind: int, count: int) -> list[int | float | bool]:
        layout = self._layout(kind)
        return [value for (value,) in layout.iter_unpack(self._take(count * layout.size))]

    def _layout(self, kind: int) -> struct.Struct:
        if kind not in _NUMBERS:
            raise damaged_file(self._path, f"a metadata value has the unknown type {kind}")
        return _NUMBERS[kind]

    def _take(self, num_bytes: int) -> bytes:
        start = self._skip(num_bytes)
        return self._data[start : self._at]

    def _skip(self, num_bytes: int) -> int:
        """Step over `num_bytes` and return where they begin."""
        start = self._at
        if num_bytes > len(self._data) - start:
            raise self._too_short()
        self._at = start + num_bytes
        return start

    def _too_short(self) -> ModelError:
        return damaged_file(self._path, "it is not a complete GGUF file, its header points past its end")
