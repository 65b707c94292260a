"""Low-rank adapters (LoRA, https://arxiv.org/abs/2106.09685), added beside the model's own weights:

    y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ

W stays what it was, packed and shared by the replicas; only the rows of a batch that have an adapter get its product.
An adapter never changes: whoever holds one may use it, and it goes when nobody does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from service.types import Adapter


class UpPart(NamedTuple):
    """Columns of the output that one of the fused layers owns: it sees `rank` of the R hidden values."""

    first_column: int
    num_columns: int
    first_rank: int
    rank: int


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter adds to one linear layer with K inputs: for each part, (x downᵀ)[its ranks] · its up.

    down [R, K]; up holds the [rank, num_columns] of the parts one after the other, the scale in them.
    """

    down: Tensor
    up: Tensor
    parts: tuple[UpPart, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LoraAdapter:
    """Implements `Adapter`. `deltas` maps names of linear layers ("layers.0.qkv") to their LowRank, as
    `Ops.prepare_low_rank` made it."""

    name: str
    key: bytes
    deltas: Mapping[str, object]


class LowRankOps(Protocol):
    """What of `Ops` an adapter needs."""

    def prepare_low_rank(self, delta: LowRank) -> object: ...

    def add_low_rank(self, x: Tensor, y: Tensor, rows: Tensor, delta: object) -> None: ...


class LoraRows:
    """Which rows of one step's batch have which adapter. Implements `Additions`."""

    def __init__(self, rows: Mapping[LoraAdapter, Tensor], ops: LowRankOps) -> None:
        self._rows = rows
        self._ops = ops

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Add to `y`, the result of the linear layer `name` for `x`, what each row's adapter has for it."""
        for adapter, rows in self._rows.items():
            delta = adapter.deltas.get(name)
            if delta is not None:
                self._ops.add_low_rank(x, y, rows, delta)


def lora_rows(runs: Iterable[tuple[Adapter | None, int]], ops: LowRankOps, device: torch.device) -> LoraRows | None:
    """The rows of a batch, as successive runs: an adapter, or none, and a number of rows. None if none has one."""
    rows: dict[LoraAdapter, list[int]] = {}
    first = 0
    for adapter, num_rows in runs:
        if adapter is not None:
            assert isinstance(adapter, LoraAdapter)
            rows.setdefault(adapter, []).extend(range(first, first + num_rows))
        first += num_rows
    if not rows:
        return None
    return LoraRows({adapter: torch.tensor(own, device=device) for adapter, own in rows.items()}, ops)
