"""Activations: PyTorch's values, and the same bits for a row wherever it stands in the batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from service.model.activation import gelu, gelu_tanh, silu
from service.model.ops import TorchOps


def silu_gate(x: Tensor) -> Tensor:
    return TorchOps().silu_gate(torch.cat([x, x], dim=-1))


def reference_silu_gate(x: Tensor) -> Tensor:
    return functional.silu(x) * x


def reference_gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (silu, functional.silu),
        (gelu, functional.gelu),
        (gelu_tanh, reference_gelu_tanh),
        (silu_gate, reference_silu_gate),
    ],
)
def test_values_are_pytorchs(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor]) -> None:
    """Over the whole useful range, far tails included, the values are PyTorch's."""
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])]).unsqueeze(0)
    assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [silu, gelu, gelu_tanh, silu_gate])
@pytest.mark.parametrize("width", [96, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_in_any_batch(
    function: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype
) -> None:
    """PyTorch's own silu and gelu fail this for widths that are no multiple of a vector, hence ours."""
    x = (torch.randn(700, width, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    whole = function(x)
    for first, count in [(0, 1), (1, 1), (3, 2), (5, 7), (0, 16), (11, 33), (2, 101), (0, 699), (13, 511)]:
        assert torch.equal(function(x[first : first + count].clone()), whole[first : first + count])
