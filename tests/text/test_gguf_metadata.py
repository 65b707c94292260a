"""The quick metadata reader reads what the gguf package writes, and no file can crash it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from service.text.gguf_metadata import read_metadata


@pytest.fixture
def gguf_path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, arch="llama")
    writer.add_string("test.text", "Grüße 你好")
    writer.add_uint8("test.small", 7)
    writer.add_int64("test.negative", -(2**40))
    writer.add_bool("test.yes", True)
    writer.add_float32("test.ratio", 0.5)
    writer.add_array("test.names", ["a", "", "é"])
    writer.add_array("test.scores", [0.25, -1.5])
    writer.add_array("test.flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_reads_every_kind_of_value(gguf_path: Path) -> None:
    """Scalars and arrays come back as the Python values that were written."""
    assert read_metadata(gguf_path) == {
        "general.architecture": "llama",
        "test.text": "Grüße 你好",
        "test.small": 7,
        "test.negative": -(2**40),
        "test.yes": True,
        "test.ratio": 0.5,
        "test.names": ["a", "", "é"],
        "test.scores": [0.25, -1.5],
        "test.flags": [True, False],
    }


def test_agrees_with_the_gguf_package_on_the_default_model(default_model_path: Path) -> None:
    """Every key of a real file has the value that the reference reader gives."""
    fields = GGUFReader(default_model_path).fields

    assert read_metadata(default_model_path) == {
        key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")
    }


@given(data=st.data())
def test_a_damaged_file_is_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut anywhere, or with any eight bytes overwritten, a file reads or raises ModelError: nothing else."""
    path = tmp_path_factory.mktemp("damaged") / "tiny.gguf"
    writer = GGUFWriter(path, arch="llama")
    writer.add_array("test.names", ["a", "bc"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 8))
    content[position : position + 8] = data.draw(st.binary(min_size=8, max_size=8) | st.just(b"\xff" * 8))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])

    try:
        read_metadata(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"", ModelError, "not a complete GGUF file"),
        (b"PK\x03\x04" + bytes(40), ModelError, "first four bytes are not GGUF"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), UnsupportedModelError, "version 1"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**62), ModelError, "not a complete GGUF file"),
    ],
    ids=["empty", "another-format", "old-version", "absurd-count"],
)
def test_says_what_is_wrong(tmp_path: Path, content: bytes, error: type[ModelError], message: str) -> None:
    """Not a GGUF file, an old version and a lying header are told apart in a sentence."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)

    with pytest.raises(error, match=message):
        read_metadata(path)


def test_a_path_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    """A directory by that name is an error in one sentence, not a traceback."""
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        read_metadata(tmp_path)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    """A path that does not exist is said to be missing."""
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf"):
        read_metadata(tmp_path / "missing.gguf")
