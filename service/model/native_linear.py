"""Products with packed weights by `linear.c`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from service.model.panels import GROUP, Format, PackedWeight

FORMATS: dict[Format, int] = {"bfloat16": 0, "int8": 1, "int4": 2}  # as in linear.c
# Panels that a thread takes at a time: memory is read faster in long pieces (int4, one row, two threads: 2 panels
# 5.7 ms, 8 panels 3.1), but all threads should have their part, and one that is disturbed not much of it.
SHARES_OF_A_THREAD = 3
LARGEST_SHARE = 16


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "panels", "bias", "codes", "scales", "sums")),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs", "share")),
        ("format", ctypes.c_int),
    )


class NativeWeight:
    """A packed weight, on the CPU, and the library that multiplies by it with as many threads as PyTorch has now."""

    def __init__(self, packed: PackedWeight, library: ctypes.CDLL) -> None:
        self.packed = packed
        self._library = library
        num_panels = packed.pieces.shape[0]
        self._share = min(LARGEST_SHARE, max(1, num_panels // (SHARES_OF_A_THREAD * torch.get_num_threads())))
        self._num_items = -(-num_panels // self._share)
        self._num_groups = 0 if packed.format == "bfloat16" else packed.num_inputs // GROUP

    def numel(self) -> int:
        return self.packed.num_outputs * self.packed.num_inputs

    @property
    def nbytes(self) -> int:
        return self.packed.pieces.nbytes

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, K] bfloat16, contiguous -> x Wᵀ + bias [T, N] bfloat16. No row sees another."""
        assert x.dtype == torch.bfloat16
        assert x.is_contiguous()
        packed, num_rows = self.packed, x.shape[0]
        y = torch.empty((num_rows, packed.num_outputs), dtype=torch.bfloat16)
        scratch = torch.empty(num_rows * self._num_groups * (GROUP + 8), dtype=torch.uint8)
        codes = scratch.data_ptr()
        scales = codes + num_rows * self._num_groups * GROUP
        arguments = _Product(
            x.data_ptr(),
            y.data_ptr(),
            packed.pieces.data_ptr(),
            None if bias is None else bias.data_ptr(),
            codes,
            scales,
            scales + num_rows * self._num_groups * 4,
            num_rows,
            packed.num_inputs,
            packed.num_outputs,
            self._share,
            FORMATS[packed.format],
        )
        self._library.headcount_linear(ctypes.addressof(arguments), self._num_items)
        return y
