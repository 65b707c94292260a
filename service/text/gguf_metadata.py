"""The key-value section of a GGUF file, quickly: a vocabulary of 49,000 tokens and as many merges takes about 50 ms.

`gguf.GGUFReader` makes numpy views of every string and needs seconds for the same, which every cold start would pay.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError

Metadata = dict[str, object]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LENGTH = struct.Struct("<Q")
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


def read_metadata(path: Path) -> Metadata:
    """All keys with their values: int, float, bool, str, or a list of one of these.

    Raises ModelNotFoundError, UnsupportedModelError (version) or ModelError (not GGUF, truncated, corrupt).
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).metadata(path)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"There is no file {path}.") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from error
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise ModelError(f"{path} is not a complete GGUF file ({error}): fetch it again.") from error


class _Cursor:
    """Reads `data` from front to back; past its end, or where it is no UTF-8, raises struct.error or ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._position = 0

    def metadata(self, path: Path) -> Metadata:
        magic, version, _num_tensors, num_keys = self._unpack("4sIQQ")
        if magic != _MAGIC:
            raise ValueError("the first four bytes are not GGUF")
        if version not in _VERSIONS:
            raise UnsupportedModelError(f"{path} is GGUF version {version}; versions 2 and 3 are supported.")
        metadata: Metadata = {}
        for _ in range(num_keys):
            (key,) = self._strings(1)
            metadata[key] = self._value()
        return metadata

    def _value(self) -> object:
        kind = GGUFValueType(*self._unpack("I"))
        if kind is GGUFValueType.ARRAY:
            item_kind, count = self._unpack("IQ")
            return self._items(GGUFValueType(item_kind), count)
        return self._items(kind, 1)[0]

    def _items(self, kind: GGUFValueType, count: int) -> list[object]:
        if kind is GGUFValueType.STRING:
            return list(self._strings(count))
        if kind not in _SCALARS:
            raise ValueError(f"arrays of {kind.name} are not known")
        return list(self._unpack(f"{count}{_SCALARS[kind]}"))

    def _strings(self, count: int) -> list[str]:
        data, position, size = self._data, self._position, len(self._data)
        strings = []
        for _ in range(count):
            start = position + _LENGTH.size
            position = start + _LENGTH.unpack_from(data, position)[0]
            if position > size:
                raise ValueError("a string ends after the end of the file")
            strings.append(data[start:position].decode())
        self._position = position
        return strings

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        layout = f"<{layout}"
        values = struct.unpack_from(layout, self._data, self._position)
        self._position += struct.calcsize(layout)
        return values
