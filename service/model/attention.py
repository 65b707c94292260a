"""Multi-head attention of a ragged batch over the paged KV cache, in plain PyTorch.

The work is cut into units: one tile of query tokens of one sequence × one tile of `KV_TILE` consecutive keys. A unit's
keys and values are gathered through the block table; nothing is padded to the longest sequence, only to the next tile.
Units of all sequences run as one batched matrix product.

**The shape rule that keeps batch invariance (P1).** A query's result must have the same bits whether it is computed
alone, in a chunk of any size, or beside any neighbours. That holds because
 1. key tiles start at multiples of `KV_TILE` positions, so the keys of a query are always grouped alike;
 2. a matrix product has the same bits for a row whatever the other rows are, once it has at least `MIN_ROWS` rows
    (measured with MKL and oneDNN; `tests/model/test_attention.py` holds us to it), so smaller tiles are padded;
 3. the maximum over tiles is exact in any order, and the sums over tiles are added one tile after the other;
 4. a key that a query may not see contributes an exact zero.

Softmax in float32, split over tiles as in flash-decoding: https://arxiv.org/abs/2205.14135.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.model.kv_cache import LayerCache

KV_TILE = 64
QUERY_TILE = 32
MIN_ROWS = 4


@dataclass(frozen=True, slots=True)
class SequenceSpan:
    """One sequence's share of a step: it computes its last `num_new_tokens` of `num_context_tokens` known tokens."""

    num_new_tokens: int
    num_context_tokens: int
    block_table: Sequence[int]


@dataclass(frozen=True, slots=True)
class TileGroup:
    """Units whose query tiles have the same number of tokens, R. Q query tiles, U units, T = KV_TILE keys each.

    Query tiles are sorted by their number of units, most first, and units go tile by tile: unit k of every query tile
    that has one comes before any unit k + 1. So the units with the same k are one slice, for the first query tiles.
    """

    rows: Tensor  # [Q * R] int64: row of each query token in the batch; padding repeats the tile's last row
    valid: Tensor  # [num_valid] int64: which of the Q * R are not padding
    num_queries: int  # R
    unit_tile: Tensor  # [U] int64: query tile of each unit
    unit_blocks: Tensor  # [U * KV_TILE / block_size] int64
    hidden: Tensor  # [U, 1, R, 1, T] bool: keys that a query may not see
    absent: Tensor  # [U, 1, T, 1] bool: slots that hold no key of the sequence, but perhaps what another left there
    rounds: tuple[tuple[int, int], ...]  # for k = 0, 1, …: the first unit k, and how many query tiles have one


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How one step's attention is cut into units; built once per step, used by every layer."""

    groups: tuple[TileGroup, ...]

    @classmethod
    def build(
        cls,
        spans: Sequence[SequenceSpan],
        *,
        block_size: int,
        device: torch.device,
        sliding_window: int | None = None,
    ) -> AttentionPlan:
        """Cut `spans`, whose query tokens lie one after the other in the batch, into units.

        `block_size` divides KV_TILE. `sliding_window` W lets a query see its last W keys, itself included.
        """
        assert KV_TILE % block_size == 0, "a key tile is made of whole blocks"
        tables = np.zeros(
            (len(spans), -(-max(s.num_context_tokens for s in spans) // KV_TILE) * KV_TILE // block_size), np.int64
        )
        first_row = 0
        tiles: dict[int, list[tuple[int, ...]]] = {1: [], QUERY_TILE: []}
        for index, span in enumerate(spans):
            tables[index, : len(span.block_table)] = span.block_table[: tables.shape[1]]
            size = 1 if span.num_new_tokens == 1 else QUERY_TILE
            first_position = span.num_context_tokens - span.num_new_tokens
            for offset in range(0, span.num_new_tokens, size):
                count = min(size, span.num_new_tokens - offset)
                tiles[size].append((index, first_row + offset, first_position + offset, count, span.num_context_tokens))
            first_row += span.num_new_tokens
        groups = tuple(
            _build_group(np.array(group, np.int64), size, tables, block_size, sliding_window, device)
            for size, group in tiles.items()
            if group
        )
        return cls(groups)


def _build_group(
    tiles: np.ndarray, size: int, tables: np.ndarray, block_size: int, sliding_window: int | None, device: torch.device
) -> TileGroup:
    """`tiles` [Q, 5]: sequence, first row, first position, number of tokens, tokens of the sequence."""
    last_key_tile = (tiles[:, 2] + tiles[:, 3] - 1) // KV_TILE
    first_key_tile = np.zeros_like(last_key_tile)
    if sliding_window is not None:
        first_key_tile = np.maximum(tiles[:, 2] - sliding_window + 1, 0) // KV_TILE
    num_units = last_key_tile - first_key_tile + 1
    order = np.argsort(-num_units, kind="stable")
    tiles, first_key_tile, num_units = tiles[order], first_key_tile[order], num_units[order]

    has_unit = np.arange(num_units[0])[:, None] < num_units[None, :]  # [round, Q]: sorted, so each row is a prefix
    counts = has_unit.sum(axis=1)
    unit_round, unit_tile = np.nonzero(has_unit)
    key_tile = first_key_tile[unit_tile] + unit_round
    blocks_per_tile = KV_TILE // block_size
    block_index = key_tile[:, None] * blocks_per_tile + np.arange(blocks_per_tile)
    unit_blocks = tables[tiles[unit_tile, 0][:, None], block_index]

    offsets = np.arange(size)
    rows = tiles[:, 1, None] + np.minimum(offsets, tiles[:, 3, None] - 1)
    query_at = (tiles[:, 2, None] + offsets)[unit_tile][:, :, None]
    key_at = (key_tile[:, None] * KV_TILE + np.arange(KV_TILE))[:, None, :]
    hidden = key_at > query_at
    if sliding_window is not None:
        hidden |= key_at <= query_at - sliding_window

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return TileGroup(
        rows=tensor(rows.reshape(-1)),
        valid=tensor(np.flatnonzero(offsets < tiles[:, 3, None])),
        num_queries=size,
        unit_tile=tensor(unit_tile),
        unit_blocks=tensor(unit_blocks.reshape(-1)),
        hidden=tensor(hidden[:, None, :, None, :]),
        absent=tensor(key_at[:, :, :, None] >= tiles[unit_tile, 4][:, None, None, None]),
        rounds=tuple(zip((np.cumsum(counts) - counts).tolist(), counts.tolist(), strict=True)),
    )


def paged_attention(query: Tensor, cache: LayerCache, plan: AttentionPlan, *, scale: float) -> Tensor:
    """Causal attention of every query token over its own sequence's keys and values.

    query [num_tokens, num_heads, head_dim]; `cache` already holds this step's own keys and values; num_heads is a
    multiple of num_kv_heads (grouped heads). Returns [num_tokens, num_heads, head_dim], contiguous.
    """
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for group in plan.groups:
        _attend_group(query, cache, group, scale, output)
    return output


def _attend_group(query: Tensor, cache: LayerCache, group: TileGroup, scale: float, output: Tensor) -> None:
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = cache.values.shape[1]
    per_kv_head = num_heads // num_kv_heads
    num_tiles, size = group.rows.numel() // group.num_queries, group.num_queries
    num_rows = size * per_kv_head
    padded_rows = max(num_rows, MIN_ROWS)

    gathered = query.index_select(0, group.rows).view(num_tiles, size, num_kv_heads, per_kv_head, head_dim)
    tiles = query.new_zeros((num_tiles, num_kv_heads, padded_rows, head_dim), dtype=torch.float32)
    tiles[:, :, :num_rows].view(num_tiles, num_kv_heads, size, per_kv_head, head_dim).copy_(gathered.transpose(1, 2))
    tiles.mul_(scale)

    keys = _gather(cache.keys.transpose(2, 3), group.unit_blocks)
    scores = torch.bmm(tiles.index_select(0, group.unit_tile).flatten(0, 1), keys.transpose(1, 2))
    scores = scores.view(-1, num_kv_heads, padded_rows, KV_TILE)
    visible = scores[:, :, :num_rows].view(-1, num_kv_heads, size, per_kv_head, KV_TILE)
    visible.masked_fill_(group.hidden, float("-inf"))

    peak = scores.amax(-1)  # [U, KVH, rows]
    tile_peak = peak[:num_tiles].clone()
    for first, count in group.rounds[1:]:
        torch.maximum(tile_peak[:count], peak[first : first + count], out=tile_peak[:count])
    weights = scores.sub_(tile_peak.index_select(0, group.unit_tile).unsqueeze(-1)).exp_()

    values = _gather(cache.values, group.unit_blocks)
    values.view(-1, num_kv_heads, KV_TILE, head_dim).masked_fill_(group.absent, 0.0)  # 0 × NaN is NaN
    partial = torch.bmm(weights.flatten(0, 1), values).view(-1, num_kv_heads, padded_rows, head_dim)
    partial_sum = weights.sum(-1, keepdim=True)
    total, total_sum = partial[:num_tiles], partial_sum[:num_tiles]
    for first, count in group.rounds[1:]:
        total[:count].add_(partial[first : first + count])
        total_sum[:count].add_(partial_sum[first : first + count])
    result = total.div_(total_sum)[:, :, :num_rows].view(num_tiles, num_kv_heads, size, per_kv_head, head_dim)
    flat = result.transpose(1, 2).reshape(num_tiles * size, num_heads, head_dim).to(query.dtype)
    output.index_copy_(0, group.rows.index_select(0, group.valid), flat.index_select(0, group.valid))


def _gather(blocks: Tensor, unit_blocks: Tensor) -> Tensor:
    """The units' keys or values as float32 [U * num_kv_heads, KV_TILE, head_dim].

    `blocks` [num_blocks, num_kv_heads, block_size, head_dim], possibly strided.
    """
    num_kv_heads, block_size, head_dim = blocks.shape[1:]
    chosen = blocks.index_select(0, unit_blocks).view(-1, KV_TILE // block_size, num_kv_heads, block_size, head_dim)
    tiles = chosen.transpose(1, 2)
    return torch.empty(tiles.shape, dtype=torch.float32, device=blocks.device).copy_(tiles).view(-1, KV_TILE, head_dim)
