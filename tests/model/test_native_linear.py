"""`linear.c`: equal to plain PyTorch with the same roundings, and no row sees another."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.model import native_build
from service.model.native_linear import NativeWeight
from service.model.panels import GROUP, Format, PackedWeight, pack, pack_groups, quantize

FORMATS: list[Format] = ["bfloat16", "int8", "int4"]
# Inputs that are one group, an odd number of them, many; outputs that fill the last panel and item, or do not.
SHAPES = [(576, 1536), (33, 96), (7, 32), (48, 160)]


@pytest.fixture(scope="module")
def library(model_cache: Path) -> ctypes.CDLL:
    found = native_build.load(native_build.LINEAR, model_cache)
    if found is None:
        pytest.skip("this machine has no native linear layers")
    return found


def packed_weight(format_: Format, shape: tuple[int, int]) -> PackedWeight:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 8
    return PackedWeight(
        format_, *shape, pack(weight.bfloat16()) if format_ == "bfloat16" else pack_groups(quantize(weight, format_))
    )


def rounded(x: Tensor) -> Tensor:
    """What the 8- and 4-bit formats make of x."""
    groups = x.float().unflatten(1, (-1, GROUP))  # type: ignore[no-untyped-call]
    peaks = groups.abs().amax(-1, keepdim=True)
    found: Tensor = (
        torch.where(peaks > 0, (groups * torch.full_like(peaks, 127).div(peaks)).round(), 0) * (peaks / 127)
    ).flatten(1)
    return found


def inputs(num_rows: int, num_inputs: int) -> Tensor:
    return torch.randn(num_rows, num_inputs, generator=torch.Generator().manual_seed(2)).bfloat16()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_is_pytorchs(library: ctypes.CDLL, format_: Format, shape: tuple[int, int], has_bias: bool) -> None:
    """To the last bit of bfloat16, of the weights as they are and of rows as the format rounds them."""
    packed = packed_weight(format_, shape)
    x = inputs(70, shape[1])
    x[3] = 0
    x[4, :GROUP] = 0
    bias = torch.arange(shape[0]).bfloat16() if has_bias else None
    values = packed.values().float() if format_ == "bfloat16" else packed.groups().values()[: shape[0]]

    y = NativeWeight(packed, library).product(x, bias)

    expected = (x.float() if format_ == "bfloat16" else rounded(x)) @ values.T + (0 if bias is None else bias.float())
    torch.testing.assert_close(y.float(), expected, rtol=2**-7, atol=1e-3)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format_", FORMATS)
def test_rows_do_not_depend_on_other_rows(library: ctypes.CDLL, format_: Format, shape: tuple[int, int]) -> None:
    """A row has the same bits in every place of every number of rows from 1 to 70."""
    weight = NativeWeight(packed_weight(format_, shape), library)
    x = inputs(70, shape[1])
    whole = weight.product(x, None)
    for count in range(1, 71):
        assert torch.equal(weight.product(x[:count].contiguous(), None), whole[:count]), count
        assert torch.equal(weight.product(x[-count:].contiguous(), None), whole[-count:]), count


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_no_number_does_not_become_one(library: ctypes.CDLL, format_: Format, bad: float) -> None:
    """A row that holds it has no finite result, so that it is noticed; the others are as they were."""
    weight = NativeWeight(packed_weight(format_, (33, 96)), library)
    x = inputs(9, 96)
    clean = weight.product(x, None)
    x[5, 40] = bad
    y = weight.product(x, None)
    assert not y[5].isfinite().any()
    others = [row for row in range(9) if row != 5]
    assert torch.equal(y[others], clean[others])


def test_no_rows(library: ctypes.CDLL) -> None:
    """Nothing in, nothing out."""
    assert NativeWeight(packed_weight("int4", (33, 96)), library).product(inputs(0, 96), None).shape == (0, 33)
