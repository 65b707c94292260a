"""Tensors of GGUF files: what is written is read, and no damaged or hostile file does more than raise a ModelError."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ModelError
from service.gguf_header import ArrayField
from service.model.gguf_file import GGUFFile
from service.model.gguf_weights import open_gguf
from tests.gguf_bytes import HUGE, header, tensor
from tests.model.gguf_files import write_gguf
from tests.model.tiny_models import configs, random_model

K_QUANTS = [Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", random_model(configs()["llama-tied"])).read_bytes()


def test_tensors_are_read(tmp_path: Path) -> None:
    """Tensors come back as written, with PyTorch's shape, beside the metadata."""
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("a.strings", ["x", "", "yz"])
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("matrix", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.metadata == {"general.architecture": "llama", "a.strings": ArrayField(3)}
    assert file.names() == {"matrix"}
    assert file.shape("matrix") == (3, 4)
    assert torch.equal(file.read("matrix"), torch.from_numpy(matrix))


@pytest.mark.parametrize("kind", K_QUANTS, ids=lambda kind: kind.name)
def test_k_quants_are_dequantised(kind: Q, tmp_path: Path) -> None:
    """Blocks of 256 values come back in their rows, with the values the gguf package gives them."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    # Small numbers, so that scales stay finite.
    blocks = np.random.default_rng(0).integers(0, 60, (3, 2 * block_bytes)).astype(np.uint8)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("before", np.zeros(5, np.float32))
    writer.add_tensor("matrix", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "m.gguf")
    values = file.read("matrix")
    assert file.shape("matrix") == values.shape == (3, 512)
    assert torch.equal(values, torch.from_numpy(dequantize(blocks, kind)))
    assert values.isfinite().all()
    assert values.std() > 0


def parse(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    checkpoint = open_gguf(path)
    for name in checkpoint.source.names():
        checkpoint.source.read(name)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_cut_file_is_an_error(data: st.DataObject, valid: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file that ends anywhere before its end is refused: nothing is read from beyond it."""
    length = data.draw(st.integers(0, len(valid) - 33))  # the last tensor is padded to 32 bytes
    with pytest.raises(ModelError):
        parse(tmp_path_factory.getbasetemp() / "cut.gguf", valid[:length])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_headers_never_crash(
    data: st.DataObject, valid: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes of the header change, the outcome is a model or a ModelError, in bounded time and memory."""
    content = bytearray(valid)
    at = data.draw(st.integers(0, 4000))
    patch = data.draw(
        st.one_of(st.binary(min_size=1, max_size=8), st.just(b"\xff" * 8), st.just(b"\xff" * 7 + b"\x7f"))
    )
    content[at : at + len(patch)] = patch
    try:
        parse(tmp_path_factory.getbasetemp() / "damaged.gguf", bytes(content))
    except ModelError as error:
        assert str(error)  # noqa: PT017 - any ModelError is right, none is too


HOSTILE = {
    "unknown type": (header(tensor("t", 32, kind=777), tensors=1), "unknown type 777"),
    "huge": (header(tensor("t", HUGE, HUGE, kind=Q.F32), tensors=1), "past its end"),
    "far": (header(tensor("t", 1, kind=Q.F32, offset=HUGE), tensors=1), "past its end"),
    "half a block": (header(tensor("t", 31, kind=Q.Q8_0), tensors=1), "does not fit its type Q8_0"),
    "no dimensions": (header(tensor("t", kind=Q.F32), tensors=1) + bytes(64), "does not fit its type F32"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_directories_are_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    """Types, shapes, offsets and sizes that cannot be true are named, not believed."""
    content, reason = HOSTILE[case]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        GGUFFile(tmp_path / "m.gguf")
