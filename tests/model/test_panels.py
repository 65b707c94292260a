"""Packed weights: nothing is lost by packing, and quantizing chooses near codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.model.panels import (
    GROUP,
    Groups,
    PackedWeight,
    QuantizedFormat,
    pack,
    pack_groups,
    packed_shape,
    quantize,
)

QUANTIZED: list[QuantizedFormat] = ["int8", "int4"]
SHAPES = st.tuples(st.integers(1, 50), st.integers(1, 5).map(lambda groups: groups * GROUP))


def matrix(shape: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(SHAPES)
@settings(deadline=None)
def test_a_packed_bfloat16_matrix_is_the_matrix(shape: tuple[int, int]) -> None:
    """Bit for bit, for any number of outputs."""
    weight = matrix(shape).bfloat16()
    pieces = pack(weight)
    assert pieces.shape == packed_shape("bfloat16", *shape)
    assert torch.equal(PackedWeight("bfloat16", *shape, pieces).values(), weight)


@given(SHAPES, st.sampled_from(QUANTIZED), st.integers(0, 99))
@settings(deadline=None)
def test_packed_groups_are_the_groups(shape: tuple[int, int], format_: QuantizedFormat, seed: int) -> None:
    """Every code, scale and minimum comes back; the rows that fill the last panel are zeros."""
    groups = quantize(matrix(shape, seed), format_)
    pieces = pack_groups(groups)
    assert pieces.shape == packed_shape(format_, *shape)
    packed = PackedWeight(format_, *shape, pieces)
    unpacked, rows = packed.groups(), shape[0]
    assert torch.equal(unpacked.codes[:rows], groups.codes)
    assert torch.equal(unpacked.scales[:rows], groups.scales)
    assert (unpacked.minima is None) == (groups.minima is None)
    if unpacked.minima is not None and groups.minima is not None:
        assert torch.equal(unpacked.minima[:rows], groups.minima)
    assert not unpacked.values()[rows:].any()
    assert torch.equal(packed.values(), groups.values().bfloat16())


@pytest.mark.parametrize(("format_", "most"), [("int8", 0.006), ("int4", 0.085)])
def test_quantizing_stays_near(format_: QuantizedFormat, most: float) -> None:
    """The error of normal numbers, relative to them; what has codes already keeps them."""
    weight = matrix((64, 512))
    groups = quantize(weight, format_)
    error = (groups.values() - weight).square().mean().sqrt() / weight.square().mean().sqrt()
    assert error < most
    if format_ == "int4":
        least, most_ = weight.view(64, -1, GROUP).aminmax(dim=-1)
        scales = ((most_ - least) / 15).half()
        codes = ((weight.view(64, -1, GROUP) - least.unsqueeze(-1)) / scales.unsqueeze(-1)).round().clamp(0, 15)
        plain = Groups(codes.byte().flatten(1), scales, least.half()).values()
        assert (groups.values() - weight).square().sum() < (plain - weight).square().sum()


@pytest.mark.parametrize("format_", QUANTIZED)
@pytest.mark.parametrize("value", [0.0, 0.37, -5.0, 1e-9])
def test_groups_without_range(format_: QuantizedFormat, value: float) -> None:
    """A constant group is kept to the precision of its numbers, and none divides by zero."""
    values = quantize(torch.full((3, GROUP), value), format_).values()
    torch.testing.assert_close(values, torch.full((3, GROUP), value), rtol=1e-3, atol=1e-7)
