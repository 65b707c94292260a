"""All linear layers of a model, one after the other as in a step, in every precision.

    GOMP_SPINCOUNT=3000 python -m service.bench.linears

The contenders take turns, so that a change of the machine's speed hits all alike. "onednn" has the same weights as
"bfloat16". A layer in a loop of its own would find its weights in the cache; here they come from memory (docs/log.md).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from service.bench.quality import load_precisions
from service.config import load_settings
from service.model.linear import Linear
from service.model.native_linear import NativeWeight

NUM_ROWS = (1, 4, 16, 64, 256)
ROUNDS = 7


def onednn(linears: Sequence[Linear]) -> list[Linear]:
    """The same layers as oneDNN computes them."""
    return [
        Linear(linear.weight.packed.values(), linear.bias) if isinstance(linear.weight, NativeWeight) else linear
        for linear in linears
    ]


def measure(contenders: Mapping[str, Sequence[Linear]], num_rows: int, rounds: int) -> dict[str, float]:
    """Median seconds of one walk through all layers."""
    widths = {_num_inputs(linear) for linear in next(iter(contenders.values()))}
    inputs = {width: torch.randn(num_rows, width).bfloat16() for width in widths}
    walks: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for _ in range(1 + rounds):
            for name, linears in contenders.items():
                walks[name].append(_walk(linears, inputs))
    return {name: statistics.median(durations[1:]) for name, durations in walks.items()}


def _walk(linears: Sequence[Linear], inputs: Mapping[int, Tensor]) -> float:
    start = time.perf_counter()
    for linear in linears:
        linear(inputs[_num_inputs(linear)])
    return time.perf_counter() - start


def _num_inputs(linear: Linear) -> int:
    return linear.weight.packed.num_inputs if isinstance(linear.weight, NativeWeight) else linear.weight.shape[1]


@click.command()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Milliseconds of all linear layers; HEADCOUNT_* variables choose the model."""
    torch.set_num_threads(threads)
    models = load_precisions(load_settings(flags={}, environment=os.environ).settings)
    contenders = {name: model.linears for name, model in models.items() if name != "float32"}
    contenders = {"onednn": tuple(onednn(contenders["bfloat16"])), **contenders}
    table = Table("rows", *(f"{name}, ms" for name in contenders))
    for num_rows in NUM_ROWS:
        found = measure(contenders, num_rows, ROUNDS)
        table.add_row(
            str(num_rows), *(f"{found[name] * 1e3:.1f} ({found['onednn'] / found[name]:.2f})" for name in found)
        )
    Console().print(table)


if __name__ == "__main__":
    main()
