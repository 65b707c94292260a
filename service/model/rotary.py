"""Rotary position embedding: the frequencies of every scaling, and a step's rotation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from service.model.architecture import LinearScaling, Llama3Scaling, RopeConfig, YarnScaling


class Rotary:
    """Angles of a step's positions. Computed per step, not tabulated: a table for a million positions would take
    gigabytes.

    `frequency_factors` [head_dim / 2] divide the frequencies; None without them.
    """

    def __init__(
        self, config: RopeConfig, head_dim: int, *, frequency_factors: Tensor | None, device: torch.device
    ) -> None:
        frequencies, self._factor = _frequencies(config, head_dim)
        if frequency_factors is not None:
            frequencies = frequencies / frequency_factors.cpu()
        self._frequencies = frequencies.to(device)

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [T] -> cosine and sine, [T, head_dim / 2] float32 each."""
        angles = positions.float().unsqueeze(1) * self._frequencies
        cos, sin = angles.cos(), angles.sin_()
        if self._factor != 1.0:
            cos, sin = cos.mul_(self._factor), sin.mul_(self._factor)
        return cos, sin


def _frequencies(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """(radians per position [head_dim / 2] float32, factor on cosine and sine), computed in transformers' order."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    wavelengths = config.theta**exponents  # in positions per radian
    match config.scaling:
        case None:
            return 1.0 / wavelengths, 1.0
        case LinearScaling(factor=factor):
            return 1.0 / wavelengths / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(1.0 / wavelengths, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(wavelengths, scaling, config.theta, head_dim), scaling.attention_factor


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_max_position * frequencies / (2 * math.pi)  # full circles within the original context
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0, 1)  # 0: slow, divided by the factor; 1: fast, kept
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def _yarn(wavelengths: Tensor, scaling: YarnScaling, theta: float, head_dim: int) -> Tensor:
    def dimension_of(num_turns: float) -> float:
        """The dimension pair that makes `num_turns` full circles within the original context (may be fractional)."""
        circumference = num_turns * 2 * math.pi
        return head_dim * math.log(scaling.original_max_position / circumference) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # a step, not a division by zero
    interpolated = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return interpolated / (scaling.factor * wavelengths) + (1 - interpolated) / wavelengths
