"""What this machine can do at best, measured: bytes read and arithmetic done per second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from service.model.linear import Linear

READ_BYTES = 1 << 29
MATRIX_SIZE = 2048
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Roof:
    """Bytes per second read from memory, and floating-point operations per second in the model's dtype."""

    bytes_per_s: float
    flops: float


def measure_roof(dtype: torch.dtype) -> Roof:
    """Best of a few tries each, with the thread count in force."""
    memory = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    layer = Linear(torch.randn(MATRIX_SIZE, MATRIX_SIZE).to(dtype))
    rows = torch.randn(MATRIX_SIZE, MATRIX_SIZE).to(dtype)
    return Roof(
        bytes_per_s=READ_BYTES / min(_best(memory.sum), _best(memory.amax)),
        flops=2 * MATRIX_SIZE**3 / _best(lambda: layer(rows)),
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    work()
    durations = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        durations.append(time.perf_counter() - start)
    return min(durations)
