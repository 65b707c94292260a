"""The operators of one transformer layer besides its matrix products: the contract, and the plain PyTorch version.

`TorchOps` is the reference and runs anywhere; `service.model.native_ops` does the same with C on CPUs.
Every operator computes a token's result with the same bits whatever other tokens are in the batch (P1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from service.model.activation import silu
from service.model.attention import AttentionPlan, SequenceSpan, paged_attention
from service.model.kv_cache import LayerCache
from service.model.linear import Linear
from service.model.lora import LowRank, UpPart


class Ops(Protocol):
    """What a transformer layer needs. T tokens, H heads, G KV heads, D head_dim."""

    def plan(
        self, spans: Sequence[SequenceSpan], *, block_size: int, device: torch.device, sliding_window: int | None
    ) -> object:
        """Prepare one step's attention, for all layers. `spans` lie one after the other in the batch."""

    def attention(self, query: Tensor, cache: LayerCache, plan: object, *, scale: float) -> Tensor:
        """query [T, H, D] (rows may be strided) -> [T, H * D]; `cache` holds this step's keys and values already."""

    def rotary_and_cache(
        self, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None, slots: Tensor, cache: LayerCache, num_heads: int
    ) -> Tensor:
        """Rotate queries and keys, write keys and values into the cache, return the queries [T, H, D].

        qkv [T, (H + 2G) * D], contiguous, may be overwritten. rotation: cos and sin [T, D / 2] float32, None for
        learned positions; dimension d turns with d + D/2 (the Hugging Face layout). slots [T] int64 = block *
        block_size + offset.
        """

    def rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """residual [T, N] += delta in place, then residual / rms(residual) * weight, rounded before the product."""

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        """gate_up [T, 2N] -> silu(gate) * up [T, N]."""

    def prepare_low_rank(self, delta: LowRank) -> object:
        """`delta` as `add_low_rank` takes it."""

    def add_low_rank(self, x: Tensor, y: Tensor, rows: Tensor, delta: object) -> None:
        """y [T, N] += what `delta` has for x [T, K], in place and only in `rows` [r] int64."""


class TorchOps:
    """The reference."""

    def plan(
        self, spans: Sequence[SequenceSpan], *, block_size: int, device: torch.device, sliding_window: int | None
    ) -> object:
        return AttentionPlan.build(spans, block_size=block_size, device=device, sliding_window=sliding_window)

    def attention(self, query: Tensor, cache: LayerCache, plan: object, *, scale: float) -> Tensor:
        assert isinstance(plan, AttentionPlan)
        return paged_attention(query, cache, plan, scale=scale).flatten(1)

    def rotary_and_cache(
        self, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None, slots: Tensor, cache: LayerCache, num_heads: int
    ) -> Tensor:
        num_kv_heads, head_dim = cache.values.shape[1], cache.values.shape[3]
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        turning, value = torch.split(heads, [num_heads + num_kv_heads, num_kv_heads], dim=1)
        if rotation is not None:
            cos, sin = (part.unsqueeze(1) for part in rotation)
            first, second = turning.float().chunk(2, dim=-1)
            turning = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(qkv.dtype)
        query, key = torch.split(turning, [num_heads, num_kv_heads], dim=1)
        blocks, offsets = slots // cache.block_size, slots % cache.block_size
        cache.keys.permute(0, 3, 1, 2)[blocks, offsets] = key
        cache.values.permute(0, 2, 1, 3)[blocks, offsets] = value
        return query

    def rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        if delta is not None:
            residual.add_(delta)
        x = residual.float()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(residual.dtype) * weight

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).to(gate_up.dtype) * up

    def prepare_low_rank(self, delta: LowRank) -> object:
        ups = torch.split(delta.up, [part.rank * part.num_columns for part in delta.parts])
        return _TorchLowRank(
            Linear(delta.down),
            tuple(
                (part, Linear(up.view(part.rank, part.num_columns).t().contiguous()))
                for part, up in zip(delta.parts, ups, strict=True)
            ),
        )

    def add_low_rank(self, x: Tensor, y: Tensor, rows: Tensor, delta: object) -> None:
        assert isinstance(delta, _TorchLowRank)
        hidden = delta.down(x.index_select(0, rows))
        for part, up in delta.ups:
            added = up(hidden[:, part.first_rank : part.first_rank + part.rank].contiguous())
            columns = y.narrow(1, part.first_column, part.num_columns)
            columns.index_copy_(0, rows, columns.index_select(0, rows).add_(added))


class _TorchLowRank(NamedTuple):
    """As linear layers, whose rows do not see each other."""

    down: Linear
    ups: tuple[tuple[UpPart, Linear], ...]
