"""Traces made on the spot, seeded: the shapes that break autoscalers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from service.autoscaling.simulator.workload import PREFIX_BLOCK_TOKENS, SimulatedRequest, Workload
from service.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Demand as functions of the second: requests/s, mean prompt and output tokens, and the share of prompts (0-1)
    that begin with one of a few long prefixes."""

    duration_s: int
    rate: Callable[[int], float]
    prompt_tokens: Callable[[int], float] = lambda _: 1155.0
    output_tokens: Callable[[int], float] = lambda _: 211.0
    shared_share: Callable[[int], float] = lambda _: 0.0


_DAY_S, _CROWD_S = 7200, range(4800, 5040)
_CYCLE_S, _ON_S = 300, 120
_NUM_SHARED_PREFIXES = 8
_SPREAD = 0.6  # sigma of the log-normal lengths


def make(name: str, shape: Shape, seed: int = 0) -> Workload:
    """Poisson arrivals within each second, log-normal lengths."""
    return Workload.of(name, _requests(shape, Random(seed)))


def _requests(shape: Shape, rng: Random) -> Iterator[SimulatedRequest]:
    fresh_id = _NUM_SHARED_PREFIXES * 1000
    for second in range(shape.duration_s):
        at, rate = float(second), shape.rate(second)
        while rate > 0.0 and (at := at + rng.expovariate(rate)) < second + 1:
            num_prompt = _length(rng, shape.prompt_tokens(second))
            num_blocks = num_prompt // PREFIX_BLOCK_TOKENS
            share = shape.shared_share(second)
            if rng.random() < share:
                first = rng.randrange(_NUM_SHARED_PREFIXES) * 1000
                prefix_ids = tuple(range(first, first + num_blocks))
            else:
                prefix_ids = (fresh_id,) if share else ()
                fresh_id += 1
            yield SimulatedRequest(at, num_prompt, _length(rng, shape.output_tokens(second)), prefix_ids)


def _length(rng: Random, mean: float) -> int:
    return max(1, round(mean * rng.lognormvariate(-_SPREAD * _SPREAD / 2, _SPREAD)))


def _switch(before: float, after: float, at_s: float) -> Callable[[int], float]:
    return lambda second: before if second < at_s else after


def _day(second: int) -> float:
    """One period of a day pressed into two hours, with a flash crowd of 2.2 × for four minutes."""
    base = 3.0 + 9.0 * 0.5 * (1.0 - math.cos(2 * math.pi * second / _DAY_S))
    return base * (2.2 if second in _CROWD_S else 1.0)


def _on_off(second: int) -> float:
    """Two minutes of work in every five."""
    return 16.0 if second % _CYCLE_S < _ON_S else 0.5


SHAPES: dict[str, Shape] = {
    "day": Shape(duration_s=_DAY_S, rate=_day),
    "on-off": Shape(duration_s=3600, rate=_on_off),
    "step": Shape(duration_s=2400, rate=_switch(3.0, 15.0, 900)),
    "ramp": Shape(duration_s=3000, rate=lambda second: 2.0 + 16.0 * min(1.0, max(0.0, (second - 600) / 1200))),
    "steady": Shape(duration_s=2400, rate=lambda _: 8.0),
    "longer-prompts": Shape(duration_s=2400, rate=lambda _: 6.0, prompt_tokens=_switch(800.0, 4000.0, 1000)),
    "longer-outputs": Shape(duration_s=2400, rate=lambda _: 6.0, output_tokens=_switch(100.0, 500.0, 1000)),
    "hits-collapse": Shape(
        duration_s=2400, rate=lambda _: 6.0, prompt_tokens=lambda _: 5000.0, shared_share=_switch(0.95, 0.02, 1000)
    ),
}


def made_trace(name: str) -> Workload:
    """A trace of `SHAPES` by name. Raises ConfigError, naming those there are."""
    if name not in SHAPES:
        raise ConfigError(f"There is no made trace {name!r}: it must be one of {', '.join(SHAPES)}.")
    return make(name, SHAPES[name])
