"""Quantized models: a GGUF's own groups are kept, other weights are rounded, and what a model can do it still does."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Q
from torch import Tensor
from transformers import LlamaConfig

from service.attention import AttentionRequest
from service.embedding import EmbeddingRequest
from service.errors import StartupError
from service.model import native_build
from service.model.attention_map import AttentionModel
from service.model.embedding import decoder_embedding
from service.model.gguf_weights import open_gguf
from service.model.linears import load_linears
from service.model.loader import DtypeName, load_model, open_checkpoint, prepare_portable
from service.model.native_linear import NativeWeight
from service.model.panels import QuantizedFormat
from service.model.prepared import map_weights, prepare
from service.model.stored import EMBEDDING, LM_HEAD, StoredWeight, stored_weights
from tests.model.gguf_files import write_gguf
from tests.model.precisions import load_as
from tests.model.test_attention_weights import finish
from tests.model.tiny_models import SIZES, Bench, configs, random_model, saved, tokens

QUANTIZED: list[QuantizedFormat] = ["int8", "int4"]
BF16 = torch.bfloat16
CPU = torch.device("cpu")
PROMPT = tokens(40)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(random_model(configs()["llama"]), tmp_path / "source")


@pytest.mark.parametrize(("kind", "format_"), [(Q.Q8_0, "int8"), (Q.Q4_0, "int4"), (Q.Q4_1, "int4")])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_a_files_own_groups_are_kept(name: str, kind: Q, format_: QuantizedFormat, tmp_path: Path) -> None:
    """What is stored of each matrix is exactly what the file says, fused and with its rows in our order."""
    checkpoint = open_gguf(write_gguf(tmp_path / "m.gguf", random_model(configs()[name]), kind))
    plain = stored_weights(checkpoint, torch.float32, "none")
    for key, weight in stored_weights(checkpoint, BF16, format_).items():
        if weight.format == format_:
            values = weight.packed(weight.read(checkpoint.source)).groups().values()[: weight.shape[0]]
            assert torch.equal(values, plain.get(key, plain[EMBEDDING]).read(checkpoint.source)), key


@pytest.mark.parametrize("format_", QUANTIZED)
def test_what_has_no_groups_is_rounded(format_: QuantizedFormat, tmp_path: Path) -> None:
    """Safetensors and other kinds of GGUF get groups, the output layer those of 8 bits."""
    model = random_model(configs()["llama-tied"])
    for path in (saved(model, tmp_path / "m"), write_gguf(tmp_path / "m.gguf", model, Q.Q5_1)):
        checkpoint = open_checkpoint(path)
        stored = stored_weights(checkpoint, BF16, format_)
        plain = stored_weights(checkpoint, torch.float32, "none")
        assert {weight.format for weight in stored.values()} == {None, format_, "int8"}
        assert stored[LM_HEAD].format == "int8"
        for key, weight in stored.items():
            if weight.format is not None:
                values = weight.packed(weight.read(checkpoint.source)).groups().values()[: weight.shape[0]]
                original = plain.get(key, plain[EMBEDDING]).read(checkpoint.source)
                error = (values - original).norm() / original.norm()
                assert 0 < error < (0.006 if weight.format == "int8" else 0.09), key


def linears_of(path: Path, format_: QuantizedFormat, cache_dir: Path) -> tuple[Mapping[str, StoredWeight], Path]:
    checkpoint = open_checkpoint(path)
    directory = prepare(checkpoint, dtype=BF16, quantization=format_, cache_dir=cache_dir)
    return stored_weights(checkpoint, BF16, format_), directory


@pytest.mark.parametrize("format_", QUANTIZED)
def test_without_kernels_the_values_are_used(
    format_: QuantizedFormat,
    directory: Path,
    tmp_path: Path,
    model_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On another machine the same prepared weights run in bfloat16: nearly the same results, and one line says so."""
    stored, prepared = linears_of(directory, format_, tmp_path)
    native = load_linears(stored, map_weights(prepared), CPU, model_cache)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    plain = load_linears(stored, map_weights(prepared), CPU, tmp_path / "no-kernels")
    assert list(plain) == list(native)
    if any(isinstance(linear.weight, NativeWeight) for linear in plain.values()):
        pytest.skip("there is always a compiler: the ziglang package")
    assert [message for message in caplog.messages if "Quantized weights" in message] == [
        "Quantized weights are kept in bfloat16 here, which takes more memory and time."
    ]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    one, other = (each["layers.0.gate_up"](x).float() for each in (native, plain))
    assert ((one - other).norm() / other.norm()) < 0.02


def similarity(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten().float(), other.flatten().float(), dim=0))


@pytest.mark.parametrize("format_", QUANTIZED)
def test_a_quantized_model_is_nearly_the_model(
    format_: QuantizedFormat, directory: Path, tmp_path: Path, model_cache: Path
) -> None:
    """Its logits, its vectors and its attention are near those of float32, 8 bits nearer than 4."""
    exact, model = (load_as(each, directory, model_cache) for each in ("float32", format_))
    least = {"int8": 0.995, "int4": 0.8}[format_]
    assert similarity(Bench(model).whole(PROMPT), Bench(exact).whole(PROMPT)) > least
    vectors, maps = [], []
    for each in (exact, model):
        embedder = decoder_embedding(each, 128)
        request = EmbeddingRequest(shape=embedder.shape, inputs=(tuple(PROMPT),), pooling="mean")
        vectors.append(torch.tensor(finish(embedder.embed(request))[0]))
        source = AttentionModel(each)
        asked = AttentionRequest(shape=source.shape, token_ids=tuple(PROMPT), layers=(1,), heads=(0,))
        maps.append(torch.tensor(finish(source.map(asked)).weights[0].rows[-1]))
    assert similarity(*vectors) > least
    assert similarity(*maps) > least


@pytest.mark.parametrize(
    ("dtype", "device", "named"),
    [
        ("float32", "cpu", "quantization = int8 computes in bfloat16, not in float32"),
        ("float16", "cpu", "not in float16"),
        ("auto", "tpu", "'tpu' is not known"),
    ],
)
def test_what_does_not_go_together_is_refused(
    dtype: DtypeName, device: str, named: str, directory: Path, tmp_path: Path
) -> None:
    """By name, before anything is read."""
    with pytest.raises(StartupError, match=named):
        load_model(directory, dtype=dtype, device=device, quantization="int8", cache_dir=tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_quantization_is_for_the_cpu(directory: Path, tmp_path: Path) -> None:
    """A GPU is refused by name."""
    with pytest.raises(StartupError, match="is for the CPU"):
        load_model(directory, dtype="auto", device="cuda", quantization="int8", cache_dir=tmp_path)


def test_layers_of_odd_width_stay_as_they_are(
    tmp_path: Path, model_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A width that no group fits leaves a layer in bfloat16, and is said."""
    caplog.set_level(logging.INFO)
    config = LlamaConfig(**{**SIZES, "intermediate_size": 100})
    model = load_as("int8", saved(random_model(config), tmp_path / "m"), model_cache)
    kinds = {linear.name: isinstance(linear.weight, NativeWeight) for linear in model.linears}
    assert not kinds["layers.0.down"]
    assert "2 of 9 linear layers stay in bfloat16: their number of inputs is no multiple of 32." in caplog.messages


def test_what_is_prepared_for_others_is_found(directory: Path, tmp_path: Path, model_cache: Path) -> None:
    """An image's cache holds the quantized weights, once."""
    native_build.build(model_cache)
    shutil.copytree(model_cache / "native", tmp_path / "native")
    prepare_portable(directory, dtype="auto", quantization="int4", cache_dir=tmp_path)
    before = sorted(tmp_path.glob("prepared/*/*"))
    load_as("int4", directory, tmp_path)
    assert sorted(tmp_path.glob("prepared/*/*")) == before
    assert len(before) == 1
