"""Directories of adapters: what is wrong with one is said by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from service.model.loader import load_model
from service.model.lora_files import read_adapter
from service.model.transformer import Transformer
from tests.model.adapters import modules_of, write_adapter
from tests.model.tiny_models import configs, random_model, saved

LLAMA = random_model(configs()["llama"])
UP = "base_model.model.model.layers.1.mlp.up_proj.lora_{}.weight"
HEAD = "base_model.model.lm_head.lora_A.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, model_cache: Path) -> Transformer:
    path = saved(LLAMA, tmp_path_factory.mktemp("base"))
    return load_model(path, dtype="float32", device="cpu", cache_dir=model_cache)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "tuned", modules_of(LLAMA))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("peft_type", "IA3", "peft_type='IA3' is not supported"),
        ("peft_type", None, "peft_type=None is not supported"),
        ("task_type", "SEQ_CLS", "task_type='SEQ_CLS'"),
        ("bias", "lora_only", "bias='lora_only'"),
        ("modules_to_save", ["lm_head"], r"modules_to_save=\['lm_head'\]"),
        ("use_dora", True, "use_dora=True"),
        ("init_lora_weights", "pissa_niter_16", "init_lora_weights='pissa_niter_16'"),
        ("rank_pattern", {"q_proj": 2}, "rank_pattern="),
        ("alpha_pattern", {"q_proj": 2}, "alpha_pattern="),
        ("layer_replication", [[0, 2]], "layer_replication="),
        ("r", 9, "the rank r=9 is above max_lora_rank, which is 8"),
        ("r", 0, "r must be an integer from 1"),
        ("r", None, "r is missing"),
        ("lora_alpha", "much", "lora_alpha must be a number above 0"),
        ("lora_alpha", 0, "lora_alpha must be a number above 0"),
        ("use_rslora", "yes", "use_rslora must be true or false"),
        ("r", 2, r"has shape \[4, \d+\], not \[2, "),
    ],
)
def test_fields_that_cannot_be_honoured_are_named(
    model: Transformer, directory: Path, field: str, value: object, named: str
) -> None:
    """What would change the numbers and is not implemented, or is no sense, is refused by its name."""
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ModelError, match=named):
        read_adapter(model, directory, "tuned", max_rank=8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({UP.format("A"): torch.zeros(4, 63)}, r"up_proj.lora_A.weight has shape \[4, 63\], not \[4, 64\]"),
        ({UP.format("B"): torch.zeros(64, 4)}, r"up_proj.lora_B.weight has shape \[64, 4\], not \[96, 4\]"),
        ({UP.format("A"): torch.zeros(4, 64, dtype=torch.int8)}, "up_proj.lora_A.weight has type I8"),
        ({UP.format("B"): torch.full((96, 4), float("nan"))}, "up_proj.lora_B.weight has values that are no finite"),
        ({UP.format("A"): None}, "only one of the two matrices of model.layers.1.mlp.up_proj"),
        ({HEAD: torch.zeros(4, 64)}, "lm_head.lora_A.weight, which is no low-rank matrix"),
        ({UP.format("A").replace("layers.1", "layers.7"): torch.zeros(4, 64)}, "layers.7.mlp.up_proj"),
        ({UP.format("magnitude_vector"): torch.zeros(96)}, "lora_magnitude_vector"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 96)}, "lora_embedding_A"),
    ],
)
def test_wrong_tensors_are_named(
    model: Transformer, directory: Path, change: dict[str, Tensor | None], named: str
) -> None:
    """A missing, misshapen, unreadable or unknown tensor ends in one sentence that names it."""
    path = directory / "adapter_model.safetensors"
    changed: dict[str, Tensor | None] = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path)
    with pytest.raises(ModelError, match=named):
        read_adapter(model, directory, "tuned", max_rank=8)


def _without_config(directory: Path) -> None:
    (directory / "adapter_config.json").unlink()


def _pickled(directory: Path) -> None:
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")


def _without_weights(directory: Path) -> None:
    (directory / "adapter_model.safetensors").unlink()


def _cut(directory: Path) -> None:
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _empty(directory: Path) -> None:
    save_file({}, directory / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "error", "named"),
    [
        (_without_config, ModelNotFoundError, "has no adapter_config.json, so it is no PEFT adapter"),
        (_without_weights, ModelNotFoundError, "has no adapter_model.safetensors"),
        (_pickled, UnsupportedModelError, "only pickled weights"),
        (_cut, ModelError, "is damaged"),
        (_empty, ModelError, "has no tensors"),
    ],
)
def test_wrong_files_are_named(
    model: Transformer, directory: Path, spoil: Callable[[Path], None], error: type[ModelError], named: str
) -> None:
    """A directory that is no whole adapter says what it lacks; pickled weights, which are code, are never opened."""
    spoil(directory)
    with pytest.raises(error, match=named):
        read_adapter(model, directory, "tuned", max_rank=8)
