"""Packed weights: a matrix [N, K] in the order in which `linear.c` uses it, in bfloat16, 8 or 4 bits.

A panel has LANES outputs. The 8- and 4-bit formats have groups of GROUP inputs: value = scale * code + minimum, where
in 8 bits minimum = -128 * scale. That is what GGUF's Q8_0, Q4_0 and Q4_1 say, so these are kept without rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

LANES = 16
GROUP = 32
ZERO_CODE = 128  # of 8 bits
LARGEST_CODE = 127
LARGEST_4_BIT_CODE = 15
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # shares of a group's range that 4 bits are tried for

QuantizedFormat = Literal["int8", "int4"]
Format = Literal["bfloat16", "int8", "int4"]
GROUP_BYTES: dict[Format, int] = {"bfloat16": 64 * LANES, "int8": 34 * LANES, "int4": 20 * LANES}


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """A matrix of codes [N, K] uint8, with scales and minima [N, K / GROUP] float16; 8-bit ones have no minima."""

    codes: Tensor
    scales: Tensor
    minima: Tensor | None

    def values(self) -> Tensor:
        """[N, K] float32."""
        codes, scales = _grouped(self.codes).float(), self.scales.float().unsqueeze(-1)
        if self.minima is None:
            return (scales * (codes - ZERO_CODE)).flatten(1)
        return (scales * codes + self.minima.float().unsqueeze(-1)).flatten(1)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """A weight [N, K] as `pack` or `pack_groups` made it: [ceil(N / LANES), K / GROUP, bytes of such a piece] uint8."""

    format: Format
    num_outputs: int
    num_inputs: int
    pieces: Tensor

    def values(self) -> Tensor:
        """The matrix [N, K], bfloat16; what has groups is rounded to it."""
        if self.format == "bfloat16":
            pairs = self.pieces.view(torch.bfloat16).view(-1, self.num_inputs // 2, LANES, 2)
            return pairs.transpose(1, 2).reshape(-1, self.num_inputs)[: self.num_outputs].contiguous()
        return self.groups().values()[: self.num_outputs].bfloat16()

    def groups(self) -> Groups:
        """Of whole panels. Not for bfloat16."""
        num_numbers = 1 if self.format == "int8" else 2
        numbers = self.pieces[:, :, : 2 * LANES * num_numbers].contiguous().view(torch.float16)
        num_panels, num_groups, _ = self.pieces.shape
        columns = numbers.view(num_panels, num_groups, num_numbers, LANES).permute(2, 0, 3, 1).flatten(1, 2)
        codes = self.pieces[:, :, 2 * LANES * num_numbers :].reshape(num_panels, num_groups, -1, LANES, 4)
        codes = codes.permute(0, 3, 1, 2, 4)
        if self.format == "int8":
            return Groups(codes.reshape(-1, self.num_inputs), columns[0], None)
        halves = torch.stack([codes & 15, codes >> 4], dim=-2)
        return Groups(halves.reshape(-1, self.num_inputs), columns[0], columns[1])


def is_packable(num_inputs: int) -> bool:
    return num_inputs % GROUP == 0


def packed_shape(format_: Format, num_outputs: int, num_inputs: int) -> torch.Size:
    """Of the bytes of a packed matrix."""
    return torch.Size((-(-num_outputs // LANES), num_inputs // GROUP, GROUP_BYTES[format_]))


def pack(weight: Tensor) -> Tensor:
    """weight [N, K] bfloat16 -> its pieces."""
    lanes = _whole_panels(weight).view(-1, LANES, weight.shape[1] // 2, 2)
    return lanes.transpose(1, 2).contiguous().view(torch.uint8).view(packed_shape("bfloat16", *weight.shape))


def pack_groups(groups: Groups) -> Tensor:
    """Its pieces, in 8 bits if it has no minima, else in 4."""
    num_groups = groups.scales.shape[1]
    quads = _whole_panels(groups.codes).view(-1, LANES, num_groups, GROUP // 4, 4)
    if groups.minima is None:
        codes, numbers = quads, groups.scales.unsqueeze(0)
    else:
        codes, numbers = quads[:, :, :, 0::2] | quads[:, :, :, 1::2] << 4, torch.stack([groups.scales, groups.minima])
    columns = torch.stack([_whole_panels(each).view(-1, LANES, num_groups) for each in numbers], dim=1)
    columns = columns.permute(0, 3, 1, 2)
    of_groups = columns.contiguous().view(torch.uint8).flatten(2)
    return torch.cat([of_groups, codes.permute(0, 2, 3, 1, 4).flatten(2)], dim=2)


def quantize(weight: Tensor, format_: QuantizedFormat) -> Groups:
    """The nearest codes for weight [N, K]: symmetric in 8 bits; in 4 bits of the range with the least squared error."""
    grouped = _grouped(weight.float())
    if format_ == "int8":
        scales = (grouped.abs().amax(-1) / LARGEST_CODE).half()
        codes = _codes(grouped, scales.float(), 0.0).clamp(-LARGEST_CODE, LARGEST_CODE) + ZERO_CODE
        return Groups(codes.byte().flatten(1), scales, None)
    least, most = grouped.aminmax(dim=-1)
    middle, best = (least + most) / 2, None
    for shrink in SHRINKS:
        scales = ((most - least) * shrink / LARGEST_4_BIT_CODE).half()
        minima = (middle - (most - least) * shrink / 2).half()
        codes = _codes(grouped, scales.float(), minima.float()).clamp(0, LARGEST_4_BIT_CODE)
        found = Groups(codes.byte().flatten(1), scales, minima)
        error = _grouped((found.values() - weight).square()).sum(-1)
        best = (found, error) if best is None else _better(best, (found, error))
    assert best is not None
    return best[0]


def _codes(grouped: Tensor, scales: Tensor, minima: Tensor | float) -> Tensor:
    """Unbounded; 0 where a group has no range."""
    if isinstance(minima, Tensor):
        minima = minima.unsqueeze(-1)
    return torch.where(scales.unsqueeze(-1) > 0, ((grouped - minima) / scales.unsqueeze(-1)).round(), 0.0)


def _better(one: tuple[Groups, Tensor], other: tuple[Groups, Tensor]) -> tuple[Groups, Tensor]:
    """Group by group the one with the smaller error."""
    (first, first_error), (second, second_error) = one, other
    assert first.minima is not None
    assert second.minima is not None
    is_first = first_error <= second_error
    chosen = Groups(
        torch.where(is_first.repeat_interleave(GROUP, dim=1), first.codes, second.codes),
        torch.where(is_first, first.scales, second.scales),
        torch.where(is_first, first.minima, second.minima),
    )
    return chosen, torch.where(is_first, first_error, second_error)


def _grouped(matrix: Tensor) -> Tensor:
    return matrix.reshape(matrix.shape[0], -1, GROUP)


def _whole_panels(rows: Tensor) -> Tensor:
    """With rows of zeros up to a multiple of LANES."""
    return functional.pad(rows, (0, 0, 0, -rows.shape[0] % LANES))
