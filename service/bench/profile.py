"""`headcount bench --profile`: where a step's time goes, and how far the model is from the machine's roof.

Each load runs bare and watched in turns; the split is that of the fastest watched run, the step's time that of the
fastest bare one, and both are shown, so that one sees what the watching costs. "host" is everything that is not the
model: what Python does before and after it.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import click
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from service.bench.contenders import Headcount
from service.bench.roof import Roof, measure_roof
from service.bench.stopwatch import Point, Stopwatch
from service.bench.subject import Subject, load_subject
from service.config import Settings
from service.engine import runner
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.engine.step_record import StepRecord
from service.errors import ConfigError
from service.model.norm import LayerNorm, RMSNorm
from service.model.rotary import Rotary
from service.model.transformer import Transformer
from service.text.detokenizer import Detokenizer
from service.types import TokenEvent

HOST = ("scheduler", "preparation", "sampling", "output", "rest of the step")
MODEL = ("linear layers", "attention", "norms, gates, rotary", "rest of the model")

BATCHES = (1, 4, 16, 64)
PROMPT_TOKENS = 64
NUM_STEPS = 8  # of a run
PREFILL_TOKENS = 512
ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Split:
    """One load: seconds of a step when nobody looks, and of each part of it when it is watched."""

    bare_s: float
    parts_s: dict[str, float]

    @property
    def watched_s(self) -> float:
        return sum(self.parts_s.values())

    @property
    def host_share(self) -> float:
        return sum(self.parts_s[part] for part in HOST) / self.watched_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """`decode` by batch size, a step each; `prefill` is a whole prompt of PREFILL_TOKENS."""

    decode: dict[int, Split]
    prefill: Split
    weight_bytes: int
    flops_per_token: int
    roof: Roof

    @property
    def share_of_bandwidth(self) -> float:
        """Of a decode step at batch 1, which must read every weight."""
        return self.weight_bytes / self.decode[1].bare_s / self.roof.bytes_per_s

    @property
    def share_of_flops(self) -> float:
        """Of the prefill, the matrix products' arithmetic alone."""
        return self.flops_per_token * PREFILL_TOKENS / self.prefill.bare_s / self.roof.flops


def profile(settings: Settings, *, as_json: bool) -> None:
    """Measure and print. Raises ConfigError for what cannot be split: no generating model, or one that is on a GPU."""
    subject = load_subject(settings)
    if subject.model.device.type != "cpu":
        raise ConfigError("--profile splits the time of a CPU: on a GPU operators return before they are done.")
    found = measure(subject, [size for size in BATCHES if size <= settings.max_num_seqs])
    setup = {
        "model": subject.engine.model_id,
        "dtype": subject.engine.model.cache_dtype,
        "threads": torch.get_num_threads(),
        "prompt_tokens": PROMPT_TOKENS,
        "decode_steps": NUM_STEPS * ROUNDS,
        "prefill_tokens": PREFILL_TOKENS,
    }
    if as_json:
        click.echo(json.dumps({"setup": setup} | _plain(found)))
    else:
        _print(setup, found)


def measure(subject: Subject, batches: Sequence[int]) -> Profile:
    """Split decode steps at each batch size, and a prefill."""
    bench = StepBench(subject)
    return Profile(
        decode={size: bench.decode(size) for size in batches},
        prefill=bench.prefill(),
        weight_bytes=subject.weight_bytes,
        flops_per_token=subject.flops_per_token,
        roof=measure_roof(subject.model.dtype),
    )


def points_of(model: Transformer) -> Iterator[Point]:
    """What to time. Parts that call others are charged for the time between those calls."""
    yield Point(EngineCore, "step", "rest of the step")
    for name in ("schedule", "commit", "finish"):
        yield Point(Scheduler, name, "scheduler")
    for name in ("arrive", "schedule", "event", "stats"):
        yield Point(StepRecord, name, "output")
    yield Point(ModelRunner, "execute", "rest of the step")
    yield Point(ModelRunner, "_inputs", "preparation")
    yield Point(runner, "sample", "sampling")
    yield Point(Transformer, "forward", "rest of the model")
    for linear in {type(each) for each in model.linears}:
        yield Point(linear, "__call__", "linear layers")
    yield Point(type(model.ops), "attention", "attention")
    for name in ("rotary_and_cache", "rms_norm", "silu_gate"):
        yield Point(type(model.ops), name, "norms, gates, rotary")
    for operator in (RMSNorm, LayerNorm, Rotary):
        yield Point(operator, "__call__", "norms, gates, rotary")


class StepBench:
    """Loads on one engine; each token's text, which the HTTP side makes, is part of the output."""

    def __init__(self, subject: Subject) -> None:
        self._points = tuple(points_of(subject.model))
        self._vocab_size = subject.model.config.vocab_size
        self._headcount = Headcount(subject.engine.core)
        self._tokenizer = subject.engine.tokenizer
        self._random = random.Random(0)

    def decode(self, size: int) -> Split:
        """A step of `size` sequences."""
        self._headcount.start(self._prompts(size, PROMPT_TOKENS), 2 * ROUNDS * NUM_STEPS)
        split = self._split(self._headcount.step, NUM_STEPS)
        self._headcount.finish()
        return split

    def prefill(self) -> Split:
        """All steps of one prompt, up to its first token."""

        def compute() -> list[TokenEvent]:
            events = self._headcount.start(self._prompts(1, PREFILL_TOKENS), 0)
            self._headcount.finish()
            return events

        return self._split(compute, 1)

    def _prompts(self, size: int, num_tokens: int) -> list[list[int]]:
        return [[self._random.randrange(self._vocab_size) for _ in range(num_tokens)] for _ in range(size)]

    def _split(self, work: Callable[[], list[TokenEvent]], times: int) -> Split:
        runs = [(self._run(work, times, ()), self._run(work, times, self._points)) for _ in range(ROUNDS)]
        bare, watched = zip(*runs, strict=True)
        best = min(watched, key=lambda parts_s: sum(parts_s.values()))
        return Split(min(sum(parts_s.values()) for parts_s in bare), best)

    def _run(self, work: Callable[[], list[TokenEvent]], times: int, points: Sequence[Point]) -> dict[str, float]:
        """Seconds of each part of `work`, on average of a few; without points all is charged to two of them."""
        watch = Stopwatch(time.perf_counter)
        texts: defaultdict[str, Detokenizer] = defaultdict(partial(Detokenizer, self._tokenizer, continues_text=True))
        with watch.watching(points):
            for _ in range(times):
                with watch.timing("rest of the step"):
                    events = work()
                with watch.timing("output"):
                    for event in events:
                        for token_id in event.token_ids:
                            texts[event.request_id].push(token_id)
        return {part: watch.spent_s[part] / times for part in (*HOST, *MODEL)}


def _loads(found: Profile) -> dict[str, Split]:
    return {str(size): split for size, split in found.decode.items()} | {"prefill": found.prefill}


def _plain(found: Profile) -> dict[str, object]:
    return {
        "loads": {
            name: {"step_s": split.bare_s, "watched_s": split.watched_s, "host_share": split.host_share}
            | {"parts_s": split.parts_s}
            for name, split in _loads(found).items()
        },
        "share_of_bandwidth": found.share_of_bandwidth,
        "share_of_flops": found.share_of_flops,
        "weight_bytes": found.weight_bytes,
        "roof": asdict(found.roof),
    }


def _print(setup: dict[str, object], found: Profile) -> None:
    console = Console()
    console.print(setup)
    loads = _loads(found)
    title = f"a decode step by batch size, and a prefill of {PREFILL_TOKENS}"
    table = Table("milliseconds", *(Column(name, no_wrap=True) for name in loads), title=title, box=SIMPLE)
    for part in (*MODEL, *HOST):
        shares = ((split.parts_s[part], split.watched_s) for split in loads.values())
        cells = (f"{found_s * 1e3:.3g} {found_s / whole_s:.0%}" for found_s, whole_s in shares)
        table.add_row(part, *cells, end_section=part in (MODEL[-1], HOST[-1]))
    table.add_row("watched", *(f"{split.watched_s * 1e3:.3g}" for split in loads.values()))
    table.add_row("bare", *(f"{split.bare_s * 1e3:.3g}" for split in loads.values()))
    table.add_row("host", *(f"{split.host_share:.1%}" for split in loads.values()))
    console.print(table)
    roof = found.roof
    console.print(
        f"batch 1 reads its {found.weight_bytes / 1e6:.0f} MB of weights at {found.share_of_bandwidth:.0%} of the"
        f" {roof.bytes_per_s / 1e9:.1f} GB/s measured; the prefill computes at {found.share_of_flops:.0%} of the"
        f" {roof.flops / 1e9:.0f} GFLOP/s measured."
    )
