"""The operators of `service.model.ops` by `kernels.c`, for CPU tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from service.model import native_build
from service.model.attention import SequenceSpan
from service.model.kv_cache import LayerCache
from service.model.lora import LowRank
from service.model.ops import Ops, TorchOps

LANES = 16  # this and the next five as in kernels.c
MAX_HEAD_DIM = 256
MAX_ROWS = 64
MAX_RANKS = 768
ROW_GROUP = 8
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
QUERY_TILE = 8


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "keys", "values", "out", "tiles", "tables")),
        ("query_stride", ctypes.c_int64),
        *((name, ctypes.c_int) for name in ("heads", "kv_heads", "head_dim", "window", "dtype")),
        ("scale", ctypes.c_float),
    )


class _Rotary(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "cos", "sin", "slots", "keys", "values")),
        *((name, ctypes.c_int) for name in ("heads", "kv_heads", "head_dim", "dtype")),
    )


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("residual", "delta", "weight", "out")),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("dtype", ctypes.c_int),
    )


class _Gate(ctypes.Structure):
    _fields_ = (
        ("gate_up", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("dtype", ctypes.c_int),
    )


class _LowRank(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "rows", "down", "up", "parts")),
        *((name, ctypes.c_int64) for name in ("num_rows", "inputs", "outputs")),
        *((name, ctypes.c_int) for name in ("ranks", "num_parts", "dtype")),
    )


class _NativePlan:
    """Query tiles of at most QUERY_TILE tokens: first row, number of tokens, first position, start of block table."""

    def __init__(self, spans: Sequence[SequenceSpan], sliding_window: int | None) -> None:
        tiles: list[tuple[int, int, int, int]] = []
        tables: list[int] = []
        row = 0
        for span in spans:
            first_position = span.num_context_tokens - span.num_new_tokens
            for offset in range(0, span.num_new_tokens, QUERY_TILE):
                count = min(QUERY_TILE, span.num_new_tokens - offset)
                tiles.append((row + offset, count, first_position + offset, len(tables)))
            tables.extend(span.block_table)
            row += span.num_new_tokens
        self.tiles = np.array(tiles, np.int64)
        self.tables = np.array(tables, np.int64)
        self.window = sliding_window or 0


class _NativeLowRank:
    """As memory that C reads."""

    def __init__(self, delta: LowRank) -> None:
        assert delta.down.shape[0] <= MAX_RANKS
        self.down, self.up = delta.down.contiguous(), delta.up.contiguous()
        self.parts = np.array(delta.parts, np.int64)


class NativeOps:
    """`kernels.c` on CPU tensors of one dtype; contiguous where the contract says so, as C reads raw memory."""

    def __init__(self, library: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._library = library
        self._dtype = DTYPES[dtype]

    def plan(
        self, spans: Sequence[SequenceSpan], *, block_size: int, device: torch.device, sliding_window: int | None
    ) -> object:
        assert block_size == LANES
        assert device.type == "cpu"
        return _NativePlan(spans, sliding_window)

    def attention(self, query: Tensor, cache: LayerCache, plan: object, *, scale: float) -> Tensor:
        assert isinstance(plan, _NativePlan)
        num_tokens, num_heads, head_dim = query.shape
        out = torch.empty((num_tokens, num_heads * head_dim), dtype=query.dtype)
        arguments = _Attention(
            query.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            out.data_ptr(),
            plan.tiles.ctypes.data,
            plan.tables.ctypes.data,
            query.stride(0),
            num_heads,
            cache.values.shape[1],
            head_dim,
            plan.window,
            self._dtype,
            scale,
        )
        self._library.headcount_attention(ctypes.addressof(arguments), len(plan.tiles))
        return out

    def rotary_and_cache(
        self, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None, slots: Tensor, cache: LayerCache, num_heads: int
    ) -> Tensor:
        assert qkv.is_contiguous()
        num_kv_heads, head_dim = cache.values.shape[1], cache.values.shape[3]
        cos, sin = (part.data_ptr() for part in rotation) if rotation is not None else (None, None)
        arguments = _Rotary(
            qkv.data_ptr(),
            cos,
            sin,
            slots.data_ptr(),
            cache.keys.data_ptr(),
            cache.values.data_ptr(),
            num_heads,
            num_kv_heads,
            head_dim,
            self._dtype,
        )
        self._library.headcount_rotary(ctypes.addressof(arguments), qkv.shape[0])
        return qkv.view(qkv.shape[0], -1, head_dim)[:, :num_heads]

    def rms_norm(self, residual: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        assert residual.is_contiguous()
        assert delta is None or delta.is_contiguous()
        out = torch.empty_like(residual)
        arguments = _Norm(
            residual.data_ptr(),
            None if delta is None else delta.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            residual.shape[1],
            eps,
            self._dtype,
        )
        self._library.headcount_norm(ctypes.addressof(arguments), residual.shape[0])
        return out

    def silu_gate(self, gate_up: Tensor) -> Tensor:
        assert gate_up.is_contiguous()
        num_rows, double_width = gate_up.shape
        out = torch.empty((num_rows, double_width // 2), dtype=gate_up.dtype)
        arguments = _Gate(gate_up.data_ptr(), out.data_ptr(), double_width // 2, self._dtype)
        self._library.headcount_silu_gate(ctypes.addressof(arguments), num_rows)
        return out

    def prepare_low_rank(self, delta: LowRank) -> object:
        return _NativeLowRank(delta)

    def add_low_rank(self, x: Tensor, y: Tensor, rows: Tensor, delta: object) -> None:
        assert isinstance(delta, _NativeLowRank)
        assert x.is_contiguous()
        assert y.is_contiguous()
        num_rows = rows.numel()
        arguments = _LowRank(
            x.data_ptr(),
            y.data_ptr(),
            rows.data_ptr(),
            delta.down.data_ptr(),
            delta.up.data_ptr(),
            delta.parts.ctypes.data,
            num_rows,
            x.shape[1],
            y.shape[1],
            delta.down.shape[0],
            len(delta.parts),
            self._dtype,
        )
        self._library.headcount_low_rank(ctypes.addressof(arguments), -(-num_rows // ROW_GROUP))


def choose_ops(
    *,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    widths: Sequence[int],
    head_dim: int,
    heads_per_kv_head: int,
    cache_dir: Path,
) -> Ops:
    """Native operators where the kernels cover the model's shapes (`widths`: all row widths they see), else PyTorch."""
    covered = (
        device.type == "cpu"
        and dtype in DTYPES
        and block_size == LANES
        and all(width % LANES == 0 for width in (*widths, head_dim))
        and head_dim <= MAX_HEAD_DIM
        and heads_per_kv_head * QUERY_TILE <= MAX_ROWS
    )
    library = native_build.load(native_build.OPERATORS, cache_dir) if covered else None
    return TorchOps() if library is None else NativeOps(library, dtype)
