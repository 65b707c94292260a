"""An encoder's vectors are transformers' hidden states, pooled as the model's files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import BertConfig, BertForMaskedLM, BertModel

from service.embedding import EmbeddingRequest, Pooling
from service.errors import ModelError, UnsupportedModelError
from service.model.embedding import EmbeddingModel
from service.model.encoder import load_encoder
from service.model.encoder_config import POOLING_FILE, is_encoder, read_encoder_config
from tests.model.test_attention_weights import finish
from tests.model.tiny_models import configs, random_model, saved, tokens

TEXTS = (tuple(tokens(1)), tuple(tokens(60, seed=1)), tuple(tokens(7, seed=2)))
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def random_bert(**changes: Any) -> Any:
    """Every parameter random, and large enough for vectors that differ."""
    model: Any = BertModel(BertConfig(**{**SIZES, **changes}))
    model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1.0 if name.endswith("LayerNorm.weight") else noise)
    return model


def load(directory: Path) -> EmbeddingModel:
    return load_encoder(directory, dtype=torch.float32, device=torch.device("cpu"))


def embed(model: EmbeddingModel, *texts: tuple[int, ...], pooling: Pooling | None = None) -> list[list[float]]:
    request = EmbeddingRequest(shape=model.shape, inputs=texts, pooling=pooling or model.shape.pooling)
    return [vector.tolist() for vector in finish(model.embed(request))]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(random_bert(), tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("changes", [{}, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}], ids=["bert", "options"])
def test_vectors_equal_transformers(changes: dict[str, Any], pooling: Pooling, tmp_path: Path) -> None:
    """Of one token, of as many as there are positions, and of texts side by side."""
    theirs = random_bert(**changes)
    ours = load(saved(theirs, tmp_path))
    for text, vector in zip(TEXTS, embed(ours, *TEXTS, pooling=pooling), strict=True):
        with torch.no_grad():
            states = theirs(torch.tensor([text])).last_hidden_state[0]
        pooled = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]

        assert_close(torch.tensor(vector), torch.nn.functional.normalize(pooled, dim=0), rtol=1e-4, atol=1e-5)


def test_neighbours_do_not_matter(bert: Path) -> None:
    """To the last bit."""
    model = load(bert)
    together = embed(model, *TEXTS, *TEXTS[::-1])

    assert together[:3] == together[:2:-1] == [embed(model, text)[0] for text in TEXTS]


def test_what_the_model_says_of_its_vectors(bert: Path) -> None:
    """They are what it is for."""
    shape = load(bert).shape

    assert (shape.kind, shape.dimensions, shape.max_tokens, shape.vocab_size) == ("encoder", 64, 64, 96)


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [(None, "mean"), ("mean_tokens", "mean"), ("cls_token", "first"), ("lasttoken", "last")],
)
def test_the_pooling_of_its_training(mode: str | None, pooling: Pooling, tmp_path: Path) -> None:
    """Is read from the file beside it."""
    saved(random_bert(), tmp_path)
    if mode is not None:
        write_pooling(tmp_path, mode)

    assert read_encoder_config(tmp_path).pooling == pooling


@pytest.mark.parametrize("modes", [["max_tokens"], ["cls_token", "mean_tokens"], []])
def test_a_pooling_that_is_not_there_is_refused(modes: list[str], tmp_path: Path) -> None:
    """Rather than replaced by another."""
    saved(random_bert(), tmp_path)
    write_pooling(tmp_path, *modes)

    with pytest.raises(UnsupportedModelError, match="pooling"):
        read_encoder_config(tmp_path)


def write_pooling(directory: Path, *modes: str) -> None:
    file = directory / POOLING_FILE
    file.parent.mkdir()
    values = {f"pooling_mode_{mode}": mode in modes for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    file.write_text(json.dumps({"word_embedding_dimension": 64, **values, "include_prompt": True}))


def test_encoders_are_told_from_decoders(bert: Path, tmp_path: Path) -> None:
    """By their architecture."""
    assert is_encoder(bert)
    assert not is_encoder(saved(random_model(configs()["llama"]), tmp_path / "llama"))
    assert not is_encoder(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    "field", [{"is_decoder": True}, {"position_embedding_type": "relative_key"}, {"hidden_act": "relu"}]
)
def test_what_is_not_implemented_is_refused(field: dict[str, Any], bert: Path, tmp_path: Path) -> None:
    """By its name."""
    config = json.loads((bert / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **field}))

    with pytest.raises(UnsupportedModelError, match=str(next(iter(field.values())))):
        read_encoder_config(tmp_path)


def test_prefixed_names(bert: Path, tmp_path: Path) -> None:
    """As a model with a head has them."""
    weights = load_file(bert / "model.safetensors")
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    save_file({f"bert.{name}": tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")

    assert embed(load(tmp_path), TEXTS[1]) == embed(load(bert), TEXTS[1])


def test_tensors_that_are_wrong(bert: Path, tmp_path: Path) -> None:
    """Missing, of another shape, or of another architecture: each is named."""
    weights = load_file(bert / "model.safetensors")
    bias = "encoder.layer.1.output.dense.bias"
    head = BertForMaskedLM(BertConfig(**SIZES)).cls.predictions.bias.detach()
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    for wrong, message in (
        ({name: tensor for name, tensor in weights.items() if name != bias}, f"lacks the tensor {bias}"),
        ({**weights, bias: torch.zeros(3)}, rf"{bias} has shape \[3\], not \[64\]"),
        ({**weights, "cls.predictions.bias": head}, "cls.predictions.bias, which BertModel does not use"),
    ):
        save_file(wrong, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=message):
            load(tmp_path)
