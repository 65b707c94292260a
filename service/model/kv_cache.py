"""The paged KV cache: where keys and values of every layer live, block by block."""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """One layer's blocks.

    keys [num_blocks, num_kv_heads, head_dim, block_size], so that one dimension of a block's keys is one vector;
    values [num_blocks, num_kv_heads, block_size, head_dim], so that one key's value is one vector.
    """

    keys: Tensor
    values: Tensor

    @property
    def block_size(self) -> int:
        return self.values.shape[2]


class KVCache:
    """All layers' caches, zero at birth (a slot never written is masked, but 0 × NaN would still be NaN)."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def layer() -> LayerCache:
            keys = _zeros((num_blocks, num_kv_heads, head_dim, block_size), dtype, device)
            values = _zeros((num_blocks, num_kv_heads, block_size, head_dim), dtype, device)
            return LayerCache(keys, values)

        self.layers = tuple(layer() for _ in range(num_layers))
        self.num_blocks = num_blocks
        self.block_size = block_size

    @staticmethod
    def bytes_per_block(
        *, num_layers: int, num_kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype
    ) -> int:
        return 2 * num_layers * num_kv_heads * head_dim * block_size * dtype.itemsize


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On CPU straight from the kernel: zero, and taken page by page as it is first used, not all at once.

    Large pages where there are any: blocks lie anywhere, and looking up a page costs as much as reading a block.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
