"""Activations whose result for an element does not depend on where it lies in the tensor.

`torch.nn.functional.silu` and `gelu` do not have that property on CPUs: their vectorised loop and the scalar loop for
what is left over (at the end of a tensor, of a row, of a thread's share) use different exponentials, so a token's
bits would change with the number of tokens beside it (P1). `torch.exp`, `tanh` and `erf` treat a remainder as a
masked vector. Arithmetic in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """x / (1 + e⁻ˣ), float32."""
    x = x.float()
    return x / x.neg().exp_().add_(1.0)


def gelu(x: Tensor) -> Tensor:
    """x Φ(x), in x's dtype: https://arxiv.org/abs/1606.08415."""
    wide = x.float()
    return wide.mul(math.sqrt(0.5)).erf_().add_(1.0).mul_(wide).mul_(0.5).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """gelu by its tanh approximation (GPT-2's `gelu_new`), in x's dtype."""
    wide = x.float()
    inner = wide.square().mul_(0.044715).add_(1.0).mul_(wide).mul_(math.sqrt(2.0 / math.pi))
    return torch.tanh_(inner).add_(1.0).mul_(wide).mul_(0.5).to(x.dtype)
