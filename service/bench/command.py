"""The measurement and its report."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import click
import torch
from rich.console import Console
from rich.table import Table

from service.bench.contender import Contender, seconds
from service.bench.contenders import CONTENDERS, Headcount
from service.bench.roof import Roof, measure_roof
from service.bench.subject import load_subject
from service.config import Settings
from service.model.hub import resolve_model

BATCHES = (1, 4, 16, 64)
PROMPT_TOKENS = 128
NUM_STEPS = 24
ROUNDS = 3


@dataclass(slots=True)
class Timings:
    """Seconds of one contender at one batch size, over all rounds."""

    prefill_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Work:
    """What one decode step and one prefill must at least do: bytes to read, operations to do."""

    weight_bytes: int
    kv_bytes_per_token: int
    flops_per_token: int


Report = dict[str, object]


def bench(settings: Settings, against: tuple[str, ...], *, as_json: bool) -> None:
    """Measure, contender after contender within each round so that a change of the machine's speed hits all alike."""
    subject = load_subject(settings)
    engine, model = subject.engine, subject.model
    path = resolve_model(settings.model, settings.cache_path)
    contenders: dict[str, Contender] = {"headcount": Headcount(engine.core)}
    contenders |= {name: CONTENDERS[name](path, model.dtype) for name in against}
    batches = [size for size in BATCHES if size <= settings.max_num_seqs]
    timings = _measure(contenders, batches, model.config.vocab_size)
    work = Work(
        weight_bytes=subject.weight_bytes,
        kv_bytes_per_token=model.kv_bytes_per_block // model.block_size,
        flops_per_token=subject.flops_per_token,
    )
    report = _report(timings, work, measure_roof(model.dtype))
    report["setup"] = {
        "model": engine.model_id,
        "dtype": engine.model.cache_dtype,
        "quantization": settings.quantization,
        "threads": torch.get_num_threads(),
        "prompt_tokens": PROMPT_TOKENS,
        "decode_steps": NUM_STEPS,
        "rounds": ROUNDS,
    }
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report, against)


def _measure(contenders: Mapping[str, Contender], batches: list[int], vocab_size: int) -> dict[int, dict[str, Timings]]:
    rng = random.Random(0)
    result = {size: {name: Timings() for name in contenders} for size in batches}
    for size in batches:
        for _ in range(ROUNDS):
            prompts = [[rng.randrange(vocab_size) for _ in range(PROMPT_TOKENS)] for _ in range(size)]
            for name, contender in contenders.items():
                timings = result[size][name]
                timings.prefill_s.append(seconds(partial(contender.start, prompts, NUM_STEPS)))
                timings.step_s += [seconds(contender.step) for _ in range(NUM_STEPS)]
                contender.finish()
    return result


def _report(timings: dict[int, dict[str, Timings]], work: Work, roof: Roof) -> Report:
    decode: dict[str, object] = {}
    prefill: dict[str, object] = {}
    for size, by_name in timings.items():
        step_s = {name: statistics.median(found.step_s) for name, found in by_name.items()}
        prompt_s = {name: statistics.median(found.prefill_s) for name, found in by_name.items()}
        ours_s, ours_prompt_s = step_s.pop("headcount"), prompt_s.pop("headcount")
        context = size * (PROMPT_TOKENS + NUM_STEPS // 2)
        moved = work.weight_bytes + context * work.kv_bytes_per_token
        decode[str(size)] = {
            "tokens_per_s": size / ours_s,
            "share_of_bandwidth": moved / ours_s / roof.bytes_per_s,
            "share_of_flops": size * work.flops_per_token / ours_s / roof.flops,
            "vs": {name: theirs / ours_s for name, theirs in step_s.items()},
        }
        prefill[str(size)] = {
            "tokens_per_s": size * PROMPT_TOKENS / ours_prompt_s,
            "share_of_flops": size * PROMPT_TOKENS * work.flops_per_token / ours_prompt_s / roof.flops,
            "vs": {name: theirs / ours_prompt_s for name, theirs in prompt_s.items()},
        }
    return {
        "decode": decode,
        "prefill": prefill,
        "roof": {"bytes_per_s": roof.bytes_per_s, "flops": roof.flops},
    }


def _print(report: Report, against: tuple[str, ...]) -> None:
    console = Console()
    roof = report["roof"]
    assert isinstance(roof, dict)
    console.print(report["setup"])
    console.print(f"roof: {roof['bytes_per_s'] / 1e9:.1f} GB/s read, {roof['flops'] / 1e9:.0f} GFLOP/s")
    for phase in ("decode", "prefill"):
        table = Table("batch", "tokens/s", "of GB/s", "of FLOP/s", *(f"times {name}" for name in against), title=phase)
        rows = report[phase]
        assert isinstance(rows, dict)
        for size, row in rows.items():
            bandwidth = f"{row['share_of_bandwidth']:.0%}" if "share_of_bandwidth" in row else ""
            ratios = [f"{row['vs'][name]:.2f}" for name in against]
            table.add_row(size, f"{row['tokens_per_s']:.0f}", bandwidth, f"{row['share_of_flops']:.0%}", *ratios)
        console.print(table)
