"""A model's vectors are transformers' hidden states, pooled, of length 1, and the same whatever is beside a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from service.embedding import EmbeddingRequest, Pooling
from service.model.embedding import GROUP_TOKENS, EmbeddingModel, decoder_embedding, groups
from service.model.loader import load_model
from tests.model.test_attention_weights import finish
from tests.model.tiny_models import configs, random_model, saved, tokens

TEXTS = (tuple(tokens(1)), tuple(tokens(40, seed=1)), tuple(tokens(7, seed=2)))
POOLINGS: list[Pooling] = ["mean", "last"]


def reference(model: PreTrainedModel, texts: tuple[tuple[int, ...], ...], pooling: Pooling) -> Tensor:
    """[num_texts, hidden] by transformers, one text at a time."""
    vectors = []
    for text in texts:
        with torch.no_grad():
            states = model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
        vectors.append(states.mean(0) if pooling == "mean" else states[-1])
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


def embed(model: EmbeddingModel, *texts: tuple[int, ...], pooling: Pooling = "mean") -> list[list[float]]:
    request = EmbeddingRequest(shape=model.shape, inputs=texts, pooling=pooling)
    return [vector.tolist() for vector in finish(model.embed(request))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    path = saved(random_model(configs()["llama"]), tmp_path_factory.mktemp("tiny"))
    return decoder_embedding(load_model(path, dtype="float32", device="cpu", cache_dir=path), 256)


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen3", "gpt2"])
def test_vectors_equal_transformers(name: str, tmp_path: Path) -> None:
    """Of every kind of position, norm and mask, in both poolings."""
    theirs = random_model(configs()[name])
    ours = load_model(saved(theirs, tmp_path / "m"), dtype="float32", device="cpu", cache_dir=tmp_path)
    model = decoder_embedding(ours, 128)
    for pooling in POOLINGS:
        vectors = torch.tensor(embed(model, *TEXTS, pooling=pooling))

        assert_close(vectors, reference(theirs, TEXTS, pooling), rtol=1e-4, atol=1e-5)


def test_a_vector_has_length_one(tiny: EmbeddingModel) -> None:
    """So that an inner product is a cosine."""
    assert_close(torch.tensor(embed(tiny, *TEXTS)).norm(dim=-1), torch.ones(len(TEXTS)))


def test_neighbours_do_not_matter(tiny: EmbeddingModel) -> None:
    """To the last bit: a text is worth the same alone, in any order, in any group."""
    together = embed(tiny, *TEXTS, *TEXTS[::-1], tuple(tokens(200, seed=3)))

    assert together[:3] == [embed(tiny, text)[0] for text in TEXTS]
    assert together[3:6] == together[2::-1]


@pytest.mark.parametrize(("num_tokens", "num_pieces"), [(1, 0), (32, 0), (64, 1), (128, 2), (256, 2)])
def test_a_piece_is_bounded(tiny: EmbeddingModel, num_tokens: int, num_pieces: int) -> None:
    """As much as 64 tokens through both layers, or one layer: steps of the engine go on in between."""
    request = EmbeddingRequest(shape=tiny.shape, inputs=(tuple(tokens(num_tokens)),), pooling="mean")

    assert len(list(tiny.embed(request))) == num_pieces


@given(st.lists(st.integers(1, 2 * GROUP_TOKENS), max_size=20))
def test_groups_are_bounded(lengths: list[int]) -> None:
    """All texts in order, none in two groups, and no more tokens together than the bound, but for one that is alone."""
    texts = [(index,) * length for index, length in enumerate(lengths)]
    made = list(groups(texts))

    assert [text for group in made for text in group] == texts
    for group in made:
        assert len(group) == 1 or sum(map(len, group)) <= GROUP_TOKENS
