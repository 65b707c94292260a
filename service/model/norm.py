"""Normalisation of a layer's input, which adds the block before it to the residual in the same pass."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from service.model.architecture import ModelConfig
from service.model.ops import Ops


class RMSNorm:
    """https://arxiv.org/abs/1910.07467, with the residual's sum."""

    def __init__(self, weight: Tensor, eps: float, ops: Ops) -> None:
        self._weight, self._eps, self._ops = weight, eps, ops

    def __call__(self, residual: Tensor, delta: Tensor | None) -> Tensor:
        """residual [T, hidden] += delta in place; returns its norm."""
        return self._ops.rms_norm(residual, delta, self._weight, self._eps)


class LayerNorm:
    """https://arxiv.org/abs/1607.06450, with the residual's sum."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        self._weight, self._bias, self._eps = weight, bias, eps

    def __call__(self, residual: Tensor, delta: Tensor | None) -> Tensor:
        """residual [T, hidden] += delta in place; returns its norm."""
        if delta is not None:
            residual.add_(delta)
        return functional.layer_norm(residual, self._weight.shape, self._weight, self._bias, self._eps)


def norm(config: ModelConfig, weights: Mapping[str, Tensor], name: str, ops: Ops) -> RMSNorm | LayerNorm:
    """The kind that `config` asks for, of the weights called `name`."""
    if config.norm == "rms":
        return RMSNorm(weights[f"{name}.weight"], config.norm_eps, ops)
    return LayerNorm(weights[f"{name}.weight"], weights[f"{name}.bias"], config.norm_eps)
