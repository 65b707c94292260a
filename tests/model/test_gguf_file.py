"""Reading GGUF headers: what is written is read, and no damaged or hostile file does more than raise a ModelError."""

from __future__ import annotations

import struct
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

from service.errors import ModelError, UnsupportedModelError
from service.model.gguf_config import config_from_gguf
from service.model.gguf_file import ArrayField, GGUFFile
from service.model.gguf_weights import open_gguf
from service.model.hf_config import config_from_hf
from tests.model.gguf_files import write_gguf
from tests.model.tiny_models import SIZES, YARN, configs, random_model

K_QUANTS = [Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", random_model(configs()["llama-tied"])).read_bytes()


def test_fields_and_tensors_are_read(tmp_path: Path) -> None:
    """Scalars, strings and lengths of arrays come back as written, tensors with PyTorch's shape."""
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_string("a.string", "zwölf")
    writer.add_bool("a.bool", True)
    writer.add_int64("a.long", -(2**40))
    writer.add_float32("a.float", 0.5)
    writer.add_array("a.strings", ["x", "", "yz"])
    writer.add_array("a.numbers", [1, 2])
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("matrix", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "m.gguf")
    assert file.fields == {
        "general.architecture": "llama",
        "a.string": "zwölf",
        "a.bool": True,
        "a.long": -(2**40),
        "a.float": 0.5,
        "a.strings": ArrayField(3),
        "a.numbers": ArrayField(2),
    }
    assert file.shape("matrix") == (3, 4)
    assert torch.equal(file.read("matrix"), torch.from_numpy(matrix))


@pytest.mark.parametrize("kind", K_QUANTS, ids=lambda kind: kind.name)
def test_k_quants_are_dequantised(kind: Q, tmp_path: Path) -> None:
    """Blocks of 256 values come back in their rows, with the values the gguf package gives them."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = (
        np.random.default_rng(0).integers(0, 60, (3, 2 * block_bytes)).astype(np.uint8)
    )  # small: scales stay finite
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


def header(*parts: bytes, tensors: int = 0, fields: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + b"".join(parts)


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


HUGE = 2**61
HOSTILE = {
    "empty": (b"", "cannot be read"),
    "not gguf": (b"PK\x03\x04" * 10, "not a GGUF file"),
    "version": (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "little-endian"),
    "endless fields": (header(fields=HUGE), "past its end"),
    "endless tensors": (header(tensors=HUGE), "past its end"),
    "endless string": (header(struct.pack("<Q", HUGE), fields=1), "past its end"),
    "endless array": (header(string("a"), struct.pack("<IIQ", 9, 0, HUGE), fields=1), "past its end"),
    "endless strings": (header(string("a"), struct.pack("<IIQ", 9, 8, HUGE), fields=1), "past its end"),
    "string too long in array": (
        header(string("a"), struct.pack("<IIQQ", 9, 8, 1, HUGE), fields=1),
        "past its end",
    ),
    "nested arrays": (header(string("a"), struct.pack("<IIQ", 9, 9, 1), fields=1), "arrays of arrays"),
    "unknown field type": (header(string("a"), struct.pack("<I", 77), fields=1), "unknown type 77"),
    "alignment": (header(string("general.alignment"), struct.pack("<II", 4, 0), fields=1), "alignment is 0"),
    "dimensions": (header(string("t"), struct.pack("<I", 9), tensors=1), "9 dimensions"),
    "unknown tensor type": (header(string("t"), struct.pack("<IQIQ", 1, 32, 777, 0), tensors=1), "unknown type 777"),
    "huge tensor": (header(string("t"), struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0), tensors=1), "past its end"),
    "far tensor": (header(string("t"), struct.pack("<IQIQ", 1, 1, 0, HUGE), tensors=1), "past its end"),
    "half a block": (header(string("t"), struct.pack("<IQIQ", 1, 31, 8, 0), tensors=1), "does not fit its type Q8_0"),
    "twice": (header(*[string("t") + struct.pack("<IQIQ", 1, 0, 0, 0)] * 2, tensors=2) + b"\0" * 64, "two tensors"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    """Counts, lengths, offsets and sizes that cannot be true are named, not believed."""
    content, reason = HOSTILE[case]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=reason):
        GGUFFile(tmp_path / "m.gguf")


def metadata(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "general.architecture": "llama",
        "llama.embedding_length": 64,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.block_count": 1,
        "llama.feed_forward_length": 96,
        "llama.context_length": 128,
        "llama.vocab_size": 96,
    }
    return fields | {name.replace("__", "."): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general__architecture": "mamba"}, "'mamba'.*llama, qwen2"),
        ({"llama__expert_count": 8}, "llama.expert_count=8"),
        ({"llama__rope__dimension_count": 8}, "part of the head"),
        ({"llama__rope__scaling__type": "longrope", "llama__rope__scaling__factor": 2.0}, "'longrope'"),
        ({"llama__attention__value_length": 8}, "different size"),
        ({"llama__attention__scale": 0.5}, "attention.scale"),
    ],
)
def test_metadata_that_is_not_implemented_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    """A GGUF model that would give other numbers than it should is refused, and the sentence says why."""
    assert config_from_gguf(metadata(), ()).hidden_size == 64
    with pytest.raises(UnsupportedModelError, match=named):
        config_from_gguf(metadata(**changes), ())


@pytest.mark.parametrize(
    ("gguf", "hf"),
    [
        ({"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope__scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 64,
            },
            YARN,
        ),
    ],
)
def test_rope_scaling_means_the_same_as_in_config_json(gguf: dict[str, object], hf: dict[str, object]) -> None:
    """GGUF metadata and config.json of the same model give the same rope."""
    ours = config_from_gguf(metadata(**{f"llama__{name}": value for name, value in gguf.items()}), ())
    assert ours.rope == config_from_hf({"architectures": ["LlamaForCausalLM"], **SIZES, "rope_parameters": hf}).rope
