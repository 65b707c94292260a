"""Hugging Face directories: what is wrong with one is said by name."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from service.model.safetensors_weights import open_directory
from tests.model.tiny_models import configs, random_model, saved

UP = "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, Tensor]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(random_model(configs()["llama"]), tmp_path)


def without(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name != UP}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without, f"lacks the tensor {UP}"),
        (lambda tensors: tensors | {UP: torch.zeros(96, 63)}, rf"{UP} has shape \[96, 63\], not \[96, 64\]"),
        (lambda tensors: tensors | {UP: torch.zeros(64, 96)}, rf"{UP} has shape \[64, 96\]"),
        (
            lambda tensors: tensors | {"model.layers.0.adapter.weight": torch.zeros(1)},
            "layers.0.adapter.weight.*does not",
        ),
        (lambda tensors: tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, "q_proj.bias"),
    ],
)
def test_wrong_tensors_are_named(directory: Path, change: Callable[[Tensors], Tensors], named: str) -> None:
    """A missing, misshapen or unused tensor ends in one sentence that names it."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(ModelError, match=named):
        open_directory(directory)


def test_tensor_types_that_need_more_than_a_cast_are_refused(directory: Path) -> None:
    """An 8-bit tensor has a scale somewhere: to read it as a number would be wrong."""
    path = directory / "model.safetensors"
    save_file(load_file(path) | {UP: torch.zeros(96, 64, dtype=torch.float8_e4m3fn)}, path)
    with pytest.raises(UnsupportedModelError, match=f"{UP} has type F8_E4M3"):
        open_directory(directory).source.read(UP)


def test_tied_models_may_still_hold_their_head(tmp_path: Path) -> None:
    """Some files keep a copy of the embedding as lm_head; when the config ties them, it is not used."""
    path = saved(random_model(configs()["llama-tied"]), tmp_path) / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    assert "lm_head.weight" not in open_directory(tmp_path).recipe


def test_pickled_weights_are_refused(directory: Path) -> None:
    """A pickle can run code when loaded."""
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="pickled"):
        open_directory(directory)


def weights_file(text: str, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text.encode() + data


def entry(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "size": b"\xff" * 64,
        "cut": weights_file("{}              "),
        "longer than the file": (1 << 40).to_bytes(8, "little") + b"{}",
        "deep": weights_file("[" * 100_000),
        "beyond the end": weights_file(json.dumps({"x": entry([4], 0, 16)})),
        "backwards": weights_file(json.dumps({"x": entry([4], 16, 0)}), bytes(16)),
        "overlapping": weights_file(json.dumps({"x": entry([4], 0, 16), "y": entry([4], 0, 16)}), bytes(16)),
        "more than its bytes": weights_file(json.dumps({"x": entry([1 << 40, 4], 0, 16)}), bytes(16)),
        "overflow": weights_file(json.dumps({"x": entry([1 << 62, 1 << 62], 0, 16)}), bytes(16)),
    }.items(),
    ids=operator.itemgetter(0),
)
def test_damaged_weights_are_refused(directory: Path, content: tuple[str, bytes]) -> None:
    """A file that is no safetensors file, or whose header lies, is named, before memory is taken for what it says."""
    (directory / "model.safetensors").write_bytes(content[1])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged|lacks the tensor"):
        open_directory(directory)


@pytest.mark.parametrize(
    ("index", "error", "named"),
    [
        ({"weight_map": {"a": "../../secret.safetensors"}}, ModelError, "outside the directory"),
        ({"weight_map": {"a": "/etc/passwd"}}, ModelError, "outside the directory"),
        ({"weight_map": {"a": "model-2.safetensors"}}, ModelNotFoundError, "lacks model-2.safetensors"),
        ({"weight_map": {"a": 3}}, ModelError, "no weight_map"),
        ({}, ModelError, "no weight_map"),
        ([], ModelError, "must hold a JSON object"),
    ],
)
def test_bad_shard_indices_are_refused(directory: Path, index: object, error: type[ModelError], named: str) -> None:
    """An index may only name files that lie beside it."""
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=named):
        open_directory(directory)


def test_other_directories_are_not_models(tmp_path: Path) -> None:
    """A directory without config.json, with a broken one, or without weights is refused with what is missing."""
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        open_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        open_directory(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        open_directory(tmp_path)
    random_model(configs()["llama"]).config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="architecture None"):
        open_directory(tmp_path)
