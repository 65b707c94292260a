"""GGUF headers: what is written is read, and no damaged or hostile file does more than raise a ModelError."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from service.gguf_header import ArrayField, GGUFHeader, TensorEntry, map_gguf, read_header
from tests.gguf_bytes import ARRAY, HUGE, STRING, UINT32, array, header, string, tensor

UINT8 = 0
ARRAYS: Mapping[str, Sequence[object]] = {
    "test.names": ["a", "", "é"],
    "test.numbers": [1, 2],
    "test.scores": [0.25, -1.5],
    "test.flags": [True, False],
}
SCALARS = {
    "general.architecture": "llama",
    "test.text": "Grüße 你好",
    "test.small": 7,
    "test.negative": -(2**40),
    "test.yes": True,
    "test.ratio": 0.5,
}


def read(path: Path, arrays: Collection[str] = ()) -> GGUFHeader:
    return read_header(map_gguf(path), path, arrays=arrays)


def write_tiny(path: Path) -> Path:
    writer = GGUFWriter(path, arch="llama")
    writer.add_string("test.text", "Grüße 你好")
    writer.add_uint8("test.small", 7)
    writer.add_int64("test.negative", -(2**40))
    writer.add_bool("test.yes", True)
    writer.add_float32("test.ratio", 0.5)
    for key, values in ARRAYS.items():
        writer.add_array(key, values)
    writer.add_tensor("matrix", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("vector", np.ones(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


class TestSoundFiles:
    """What a writer wrote."""

    def test_every_kind_of_value_is_read(self, tiny_path: Path) -> None:
        """Scalars and arrays come back as the Python values that were written."""
        assert read(tiny_path, ARRAYS).metadata == {**SCALARS, **ARRAYS}

    def test_arrays_nobody_asked_for_keep_their_length(self, tiny_path: Path) -> None:
        """All other values are the same, read or walked over."""
        lengths = {key: ArrayField(len(values)) for key, values in ARRAYS.items()}

        assert read(tiny_path).metadata == {**SCALARS, **lengths}
        assert read(tiny_path, ["test.flags"]).metadata == {**SCALARS, **lengths, "test.flags": [True, False]}

    def test_the_directory_is_read(self, tiny_path: Path) -> None:
        """Tensors have PyTorch's shape, and their bytes lie where the directory says."""
        found = read(tiny_path)

        assert found.tensors == {
            "matrix": TensorEntry(shape=(3, 4), type_id=GGMLQuantizationType.F32, offset=0),
            "vector": TensorEntry(shape=(5,), type_id=GGMLQuantizationType.F16, offset=64),
        }
        assert tiny_path.read_bytes()[found.data_start :][:8] == struct.pack("<ff", 0, 1)

    def test_agrees_with_the_gguf_package_on_the_default_model(self, default_model_path: Path) -> None:
        """Every key and every tensor of a real file is what the reference reader gives."""
        reference = GGUFReader(default_model_path)

        found = read(default_model_path, reference.fields)

        assert found.metadata == {
            key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")
        }
        assert {
            name: (entry.shape, entry.type_id, found.data_start + entry.offset) for name, entry in found.tensors.items()
        } == {
            entry.name: (tuple(reversed(entry.shape.tolist())), entry.tensor_type, entry.data_offset)
            for entry in reference.tensors
        }

    def test_version_2_is_read(self, tiny_path: Path, tmp_path: Path) -> None:
        """Version 3 only allowed the other byte order: a file of version 2 says the same."""
        content = tiny_path.read_bytes()
        (tmp_path / "m.gguf").write_bytes(content[:4] + struct.pack("<I", 2) + content[8:])

        assert read(tmp_path / "m.gguf", ARRAYS) == read(tiny_path, ARRAYS)

    @pytest.mark.parametrize(("alignment", "start"), [(1, 57), (8, 64), (100, 100)])
    def test_the_data_start_at_the_alignment(self, tmp_path: Path, alignment: int, start: int) -> None:
        """`general.alignment` rounds the end of the header up."""
        content = header(string("general.alignment"), struct.pack("<II", UINT32, alignment), fields=1)
        (tmp_path / "m.gguf").write_bytes(content)

        assert len(content) == 57
        assert read(tmp_path / "m.gguf").data_start == start


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_damaged_file_is_an_error_of_ours(
    tiny_path: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, or with any eight bytes overwritten, a file reads or raises ModelError: nothing else."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    content = bytearray(tiny_path.read_bytes())
    position = data.draw(st.integers(0, read(tiny_path).data_start))
    patch = st.binary(min_size=8, max_size=8) | st.just(b"\xff" * 8) | st.just(b"\xff" * 7 + b"\x7f")
    content[position : position + 8] = data.draw(patch)
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])

    try:
        read(path, data.draw(st.sampled_from([(), tuple(ARRAYS)])))
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are right


HOSTILE = {
    "empty": (b"", ModelError, "cannot be read: .*not a complete GGUF file"),
    "another format": (b"PK\x03\x04" * 10, ModelError, "not a GGUF file: its first four bytes are not GGUF"),
    "old version": (header(version=1), UnsupportedModelError, "version 1;"),
    "new version": (header(version=99), UnsupportedModelError, "version 99"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedModelError, "little-endian"),
    "absurd count": (header(fields=2**62), ModelError, "not a complete GGUF file"),
    "endless fields": (header(fields=HUGE), ModelError, "past its end"),
    "endless tensors": (header(tensors=HUGE), ModelError, "past its end"),
    "endless string": (header(struct.pack("<Q", HUGE), fields=1), ModelError, "past its end"),
    "endless array": (header(string("a"), array(UINT8, HUGE), fields=1), ModelError, "past its end"),
    "endless strings": (header(string("a"), array(STRING, HUGE), fields=1), ModelError, "past its end"),
    "string too long in array": (
        header(string("a"), array(STRING, 1), struct.pack("<Q", HUGE), fields=1),
        ModelError,
        "past its end",
    ),
    "nested arrays": (header(string("a"), array(ARRAY, 1), fields=1), UnsupportedModelError, "arrays of arrays"),
    "unknown field type": (header(string("a"), struct.pack("<I", 77), fields=1), ModelError, "unknown type 77"),
    "unknown array type": (header(string("a"), array(77, 1), fields=1), ModelError, "unknown type 77"),
    "not text": (header(struct.pack("<QB", 1, 0xFF), fields=1), ModelError, "is not UTF-8"),
    "alignment": (
        header(string("general.alignment"), struct.pack("<II", UINT32, 0), fields=1),
        ModelError,
        "alignment is 0",
    ),
    "dimensions": (header(string("t"), struct.pack("<I", 9), tensors=1), ModelError, "9 dimensions"),
    "twice": (header(*[tensor("t", 0, kind=0)] * 2, tensors=2) + b"\0" * 64, ModelError, "two tensors"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    """Counts, lengths and types that cannot be true are named, not believed, in a sentence that says which file."""
    content, error, reason = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)

    with pytest.raises(error, match=rf"m\.gguf.*{reason}"):
        read(path)


HOSTILE_ARRAYS = {
    "cut numbers": (array(UINT8, 9) + bytes(8), "past its end"),
    "cut strings": (array(STRING, 9) + bytes(64), "past its end"),
    "endless string": (array(STRING, 1) + struct.pack("<Q", HUGE), "past its end"),
    "not text": (array(STRING, 1) + struct.pack("<QB", 1, 0xFF), "is not UTF-8"),
    "endless numbers": (array(UINT8, HUGE), "items, more than"),
    "endless strings": (array(STRING, HUGE), "items, more than"),
    "too many numbers": (array(UINT8, 2**24 + 1) + bytes(2**24 + 1), "items, more than"),
    "nested": (array(ARRAY, 1), "arrays of arrays"),
    "unknown type": (array(77, 1), "unknown type 77"),
}


@pytest.mark.parametrize("case", HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused_when_read(case: str, tmp_path: Path) -> None:
    """An array that is asked for is checked like one that is walked over, and may not cost gigabytes."""
    value, reason = HOSTILE_ARRAYS[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(header(string("a"), value, fields=1))

    with pytest.raises(ModelError, match=reason):
        read(path, ["a"])


def test_a_path_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """A directory by that name is an error in one sentence, not a traceback."""
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        map_gguf(tmp_path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """A path that does not exist is said to be missing."""
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf"):
        map_gguf(tmp_path / "missing.gguf")
