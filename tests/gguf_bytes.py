"""GGUF headers byte by byte, for the ones that no writer would write."""

from __future__ import annotations

import struct

HUGE = 2**61
UINT32, STRING, ARRAY = 4, 8, 9
"""Types of metadata values."""


def header(*parts: bytes, tensors: int = 0, fields: int = 0, version: int = 3) -> bytes:
    """`tensors` and `fields` are the counts that the header claims, whatever `parts` holds."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join(parts)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def array(kind: int, length: int) -> bytes:
    """The type of a metadata value and, of an array's value, all but the items."""
    return struct.pack("<IIQ", ARRAY, kind, length)


def tensor(name: str, *dimensions: int, kind: int, offset: int = 0) -> bytes:
    """An entry of the directory; `dimensions` in the file's order, fastest first."""
    return string(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
