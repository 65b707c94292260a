"""Texts to vectors: the last hidden states of a network, pooled over the tokens of each text and of length 1.

Texts run in groups of a bounded number of tokens, some layers at a time, so that an engine can go on with its steps in
between. T tokens in a group.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator, Sequence
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from service.embedding import MAX_INPUT_TOKENS, EmbeddingRequest, EmbeddingShape, Pooling
from service.model.attention import SequenceSpan
from service.model.inputs import ModelInputs
from service.model.kv_cache import KVCache
from service.model.transformer import Transformer

GROUP_TOKENS = 256
PIECE_TOKENS = 64  # a piece costs as much as this many tokens through all layers, or one layer if that is more

Group = Sequence[tuple[int, ...]]


class Network(Protocol):
    """Whatever has hidden states."""

    @property
    def num_layers(self) -> int: ...

    def hidden_states(self, group: Group) -> Generator[None, None, Tensor]:
        """Yields after each layer; returns [T, hidden] of the last one, normalised as the network does it."""
        ...


class EmbeddingModel:
    """Makes vectors with a network."""

    def __init__(self, network: Network, shape: EmbeddingShape) -> None:
        self.shape = shape
        self._network = network

    def embed(self, request: EmbeddingRequest) -> Generator[None, None, list[array[float]]]:
        """A float32 vector for each input, in order. A text's vector does not depend on its neighbours."""
        vectors: list[array[float]] = []
        for group in groups(request.inputs):
            hidden = yield from self._in_pieces(group)
            vectors += _vectors(hidden, group, request.pooling)
        return vectors

    def _in_pieces(self, group: Group) -> Generator[None, None, Tensor]:
        """The hidden states of `group`; a piece is a number of layers."""
        num_tokens, num_layers = sum(map(len, group)), self._network.num_layers
        layers_per_piece = max(1, num_layers * PIECE_TOKENS // num_tokens)
        layers = self._network.hidden_states(group)
        for num_done in range(1, num_layers + 1):
            next(layers)
            if num_done % layers_per_piece == 0:
                yield
        try:
            next(layers)
        except StopIteration as end:
            hidden: Tensor = end.value
            return hidden
        raise AssertionError("a network yields once for each layer")


def groups(inputs: Sequence[tuple[int, ...]]) -> Iterator[Group]:
    """`inputs` in order, as many at a time as have GROUP_TOKENS tokens together; a longer one is alone."""
    group: list[tuple[int, ...]] = []
    for token_ids in inputs:
        if group and sum(map(len, group)) + len(token_ids) > GROUP_TOKENS:
            yield group
            group = []
        group.append(token_ids)
    if group:
        yield group


@torch.inference_mode()
def _vectors(hidden: Tensor, group: Group, pooling: Pooling) -> Iterator[array[float]]:
    pooled = torch.stack([_pool(rows, pooling) for rows in torch.split(hidden.float(), [len(ids) for ids in group])])
    for vector in functional.normalize(pooled, dim=-1).cpu().numpy():
        yield array("f", vector.tobytes())


def _pool(rows: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "mean":
        return rows.mean(0)
    return rows[-1 if pooling == "last" else 0]


class DecoderNetwork:
    """A decoder-only transformer, over a small cache of its own."""

    def __init__(self, model: Transformer) -> None:
        self.num_layers = model.config.num_layers
        self._model = model

    @torch.inference_mode()
    def hidden_states(self, group: Group) -> Generator[None, None, Tensor]:
        model, size, config = self._model, self._model.block_size, self._model.config
        spans: list[SequenceSpan] = []
        slots: list[int] = []
        num_blocks = 0
        for token_ids in group:
            table = range(num_blocks, num_blocks - (-len(token_ids) // size))
            spans.append(SequenceSpan(len(token_ids), len(token_ids), table))
            slots += range(num_blocks * size, num_blocks * size + len(token_ids))
            num_blocks = table.stop
        cache = KVCache(  # one layer's is enough: the next layer overwrites it
            num_layers=1,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            num_blocks=num_blocks,
            block_size=size,
            dtype=model.dtype,
            device=model.device,
        )
        inputs = ModelInputs(
            token_ids=self._tensor([token_id for token_ids in group for token_id in token_ids]),
            positions=self._tensor([position for token_ids in group for position in range(len(token_ids))]),
            slot_mapping=self._tensor(slots),
            logits_rows=self._tensor([]),
            attention=model.plan(spans),
        )
        for residual, delta in model.layer_by_layer(inputs, repeat(cache.layers[0], config.num_layers)):
            last = residual, delta
            yield
        return model.normed(*last)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._model.device)


def decoder_embedding(model: Transformer, max_model_len: int) -> EmbeddingModel:
    """The vectors that a model for generation has to give."""
    shape = EmbeddingShape(
        kind="decoder",
        dimensions=model.config.hidden_size,
        pooling="mean",
        max_tokens=min(max_model_len, MAX_INPUT_TOKENS),
        vocab_size=model.config.vocab_size,
    )
    return EmbeddingModel(DecoderNetwork(model), shape)
