"""The weights that peers are given: those of the source, but for the rounding that they are asked for."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from service.bench.peers.weights import KINDS, gguf_as

# The error of one weight, by the largest of its group of 32; none where 16 bits keep what is there.
ERRORS = {"bf16": 2**-8, "f16": 2**-10, "q8_0": 1 / 127, "q4_0": 1 / 7}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.random.default_rng(0).standard_normal((4, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.linspace(0.5, 1.5, 64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_rounded_and_nothing_else_changes(kind: str, source: Path, tmp_path: Path) -> None:
    """Metadata, names and vectors are the source's; made once."""
    path = gguf_as(source, kind, tmp_path / "weights")
    made, original = gguf.GGUFReader(path), gguf.GGUFReader(source)
    for key in ("general.architecture", "llama.context_length", "tokenizer.ggml.tokens"):
        ours, theirs = made.get_field(key), original.get_field(key)
        assert ours is not None
        assert theirs is not None
        assert ours.contents() == theirs.contents()
    matrix, vector = made.tensors
    assert (matrix.name, vector.name) == ("token_embd.weight", "output_norm.weight")
    assert matrix.tensor_type == KINDS[kind]
    assert np.array_equal(vector.data, original.tensors[1].data)
    values = gguf.quants.dequantize(matrix.data, matrix.tensor_type).reshape(4, -1, 32)
    wanted = original.tensors[0].data.reshape(4, -1, 32)
    assert (np.abs(values - wanted) <= ERRORS[kind] * np.abs(wanted).max(axis=-1, keepdims=True)).all()
    written_at = path.stat().st_mtime_ns
    assert gguf_as(source, kind, tmp_path / "weights").stat().st_mtime_ns == written_at
