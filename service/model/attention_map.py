"""An `AttentionMap` of a model, layer by layer. Its numbers are rounded to `DECIMALS`, which is float32's own grain."""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator

import torch
from torch import Tensor

from service.attention import AttentionMap, AttentionRequest, AttentionShape, HeadSummary, HeadWeights, Link, Rows
from service.model.attention_weights import attention_weights
from service.model.transformer import Transformer

DECIMALS = 7


class AttentionModel:
    """A model whose attention can be looked at."""

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.shape = AttentionShape(
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            sliding_window=config.sliding_window,
        )
        self._model = model

    def map(self, request: AttentionRequest) -> Generator[None, None, AttentionMap]:
        """Yields after each layer, so that the engine can go on with its steps, and returns the whole."""
        found = AttentionMap(summaries=[], weights=[], links=[], row=[])
        repeats = _repeats(request.token_ids)
        for layer, weights in enumerate(attention_weights(self._model, request.token_ids)):
            found.summaries.append(_summaries(weights, repeats))
            if layer in request.layers:
                found.weights.extend(HeadWeights(layer, head, _triangle(weights[head])) for head in request.heads)
            if request.position is not None:
                row = _rounded(weights[:, request.position, : request.position + 1])
                found.links.extend(_links(layer, row, request.num_links))
                if request.all_heads:
                    found.row.append(row)
            yield
        found.links[:] = heapq.nlargest(request.num_links, found.links, key=lambda link: link.weight)
        return found


def _summaries(weights: Tensor, repeats: Tensor) -> list[HeadSummary]:
    """The summaries of one layer's heads from its weights [H, T, T]; `repeats` as of `_repeats`."""
    num_tokens = weights.shape[-1]
    positions = torch.arange(num_tokens, device=weights.device)
    age = (positions.unsqueeze(1) - positions).float()
    unknown: list[float | None] = [None] * weights.shape[0]
    has_past, num_repeating = num_tokens > 1, int(repeats.any(-1).sum())
    following = repeats.to(weights.device)
    columns = zip(
        (torch.special.entr(weights).sum(-1).mean(-1) / math.log(2)).tolist(),
        (weights * age).sum(-1).mean(-1).tolist(),
        weights.diagonal(-1, dim1=1, dim2=2).mean(-1).tolist() if has_past else unknown,
        weights[:, 1:, 0].mean(-1).tolist() if has_past else unknown,
        ((weights * following).sum((1, 2)) / num_repeating).tolist() if num_repeating else unknown,
        strict=True,
    )
    return [HeadSummary(*(None if value is None else round(value, DECIMALS) for value in each)) for each in columns]  # type: ignore[arg-type]


def _repeats(token_ids: tuple[int, ...]) -> Tensor:
    """[T, T] bool: i, j where the token before j is the same as token i, and j comes before i."""
    ids = torch.tensor(token_ids)
    same = (ids.unsqueeze(1) == ids).tril(-2)  # the token right before i is followed by i itself: no look back
    return same.roll(1, dims=1)


def _links(layer: int, row: Rows, most: int) -> list[Link]:
    """The strongest links of one layer from the token that ends `row` [H][n] to those between the first and it."""
    links = (
        Link(layer, head, position, weight)
        for head, weights in enumerate(row)
        for position, weight in enumerate(weights[1:-1], start=1)
    )
    return heapq.nlargest(most, links, key=lambda link: link.weight)


def _triangle(weights: Tensor) -> Rows:
    return [row[: position + 1] for position, row in enumerate(_rounded(weights))]


def _rounded(weights: Tensor) -> Rows:
    """Rows of Python numbers: no weight is 0.30000001192092896."""
    rows: Rows = weights.double().cpu().numpy().round(DECIMALS).tolist()
    return rows
