"""Attention weights are transformers' `output_attentions`; their summaries are what their definitions say."""

from __future__ import annotations

import math
from collections.abc import Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from service.attention import AttentionMap, AttentionRequest, HeadSummary
from service.model.attention_map import AttentionModel
from service.model.attention_weights import attention_weights
from service.model.gguf_weights import open_gguf
from service.model.loader import load_model
from service.model.transformer import Transformer
from tests.model.test_default_model import transformers_model
from tests.model.tiny_models import configs, random_model, saved, tokens

T = TypeVar("T")

SENTENCE = [504, 2644, 6067, 335, 260, 5124, 975, 357, 436, 8017]  # tokens of the default model


def reference(model: Any, token_ids: list[int]) -> Tensor:
    """[L, H, T, T] by transformers."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return torch.stack(model(torch.tensor([token_ids]), output_attentions=True).attentions)[:, 0]


def finish(pieces: Generator[None, None, T]) -> T:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


def look(model: Transformer, token_ids: list[int], **asked: Any) -> AttentionMap:
    source = AttentionModel(model)
    return finish(source.map(AttentionRequest(shape=source.shape, token_ids=tuple(token_ids), **asked)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    path = saved(random_model(configs()["llama"]), tmp_path_factory.mktemp("tiny"))
    return load_model(path, dtype="float32", device="cpu", cache_dir=path)


@pytest.mark.parametrize("name", configs())
def test_weights_equal_transformers(name: str, tmp_path: Path) -> None:
    """Of every architecture, with grouped heads and sliding windows; of one token, and of more than a tile of keys."""
    theirs = random_model(configs()[name])
    ours = load_model(saved(theirs, tmp_path / "m"), dtype="float32", device="cpu", cache_dir=tmp_path)
    for token_ids in (tokens(1), tokens(70)):
        weights = torch.stack(list(attention_weights(ours, token_ids)))
        expected = reference(theirs, token_ids)
        assert weights.shape == expected.shape
        assert_close(weights, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_the_default_model_equal_transformers(default_model_path: Path, tmp_path: Path) -> None:
    """On the same dequantised weights."""
    ours = load_model(default_model_path, dtype="float32", device="cpu", cache_dir=tmp_path)
    weights = torch.stack(list(attention_weights(ours, SENTENCE)))
    assert_close(weights, reference(transformers_model(open_gguf(default_model_path)), SENTENCE), rtol=1e-3, atol=1e-4)


def by_definition(weights: Tensor, token_ids: list[int]) -> HeadSummary:
    """The summary of one head [T, T], one sum after the other."""
    rows, many = weights.tolist(), range(len(token_ids))
    entropy = sum(-w * math.log2(w) for row in rows for w in row if w > 0) / len(rows)
    distance = sum(rows[i][j] * (i - j) for i in many for j in many) / len(rows)
    past = [(rows[i][i - 1], rows[i][0]) for i in many[1:]]
    inductions = []
    for i in many:
        followers = [j + 1 for j in range(i - 1) if token_ids[j] == token_ids[i]]
        if followers:
            inductions.append(sum(rows[i][j] for j in followers))
    return HeadSummary(
        entropy=entropy,
        distance=distance,
        previous=sum(w for w, _ in past) / len(past) if past else None,
        first=sum(w for _, w in past) / len(past) if past else None,
        induction=sum(inductions) / len(inductions) if inductions else None,
    )


@pytest.mark.parametrize("token_ids", [[5], [5, 5], [5, 5, 5], [5, 6, 7, 5, 6, 9, 5], tokens(30)])
def test_summaries_are_what_they_say(tiny: Transformer, token_ids: list[int]) -> None:
    """Each of them, computed the long way; what cannot be asked of so few tokens is None."""
    found = look(tiny, token_ids)
    for layer, weights in enumerate(attention_weights(tiny, token_ids)):
        for head, summary in enumerate(found.summaries[layer]):
            expected = by_definition(weights[head].double(), token_ids)
            assert [value is None for value in summary] == [value is None for value in expected]
            assert [value or 0.0 for value in summary] == pytest.approx([value or 0.0 for value in expected], abs=1e-5)


def test_what_is_asked_for_is_given_and_no_more(tiny: Transformer) -> None:
    """Whole heads as triangles, the row of one token in every head, and its strongest links, the first token apart."""
    token_ids = tokens(12)
    exact = torch.stack(list(attention_weights(tiny, token_ids)))
    found = look(tiny, token_ids, layers=(1,), heads=(2, 0), position=9, num_links=5, all_heads=True)

    assert [(each.layer, each.head) for each in found.weights] == [(1, 2), (1, 0)]
    for each in found.weights:
        for position, row in enumerate(each.rows):
            assert row == pytest.approx(exact[each.layer, each.head, position, : position + 1].tolist(), abs=1e-7)
    assert_close(torch.tensor(found.row), exact[:, :, 9, :10], rtol=0, atol=1e-7)
    flat = exact[:, :, 9, 1:9].flatten().sort(descending=True).values[:5]
    assert [link.weight for link in found.links] == pytest.approx(flat.tolist(), abs=1e-7)
    assert [exact[link.layer, link.head, 9, link.position].item() for link in found.links] == pytest.approx(
        flat.tolist()
    )

    bare = look(tiny, token_ids)
    assert (bare.weights, bare.links, bare.row) == ([], [], [])


def test_a_layer_is_a_piece(tiny: Transformer) -> None:
    """The engine gets its turn after each layer, and is not left in inference mode."""
    source = AttentionModel(tiny)
    pieces = source.map(AttentionRequest(shape=source.shape, token_ids=(1, 2, 3)))
    for _ in range(tiny.config.num_layers):
        next(pieces)
        assert not torch.is_inference_mode_enabled()
    with pytest.raises(StopIteration):
        next(pieces)
