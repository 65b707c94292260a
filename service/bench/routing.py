"""What would a better choice of replica than HAProxy's be worth? Ways to choose, against each other in virtual time.

    python -m service.bench.routing mooncake_conversation_trace.jsonl.gz

A fleet of one size, and the trace played so fast that its work is a share of what the fleet carries, prefix hits not
reckoned with. The last column is the highest such share at which 99 % of the requests meet the SLO.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from service.autoscaling.command import load_workload
from service.autoscaling.cost_model import Capacity, Mix, capacity
from service.autoscaling.signals import EngineLimits
from service.autoscaling.simulator.baselines import Static
from service.autoscaling.simulator.fleet import FleetConfig
from service.autoscaling.simulator.measures import Summary, summarise
from service.autoscaling.simulator.workload import Workload
from service.bench.routers import (
    UNBOUNDED,
    Best,
    BoundedHash,
    Exact,
    OwnSends,
    Reported,
    RoundRobin,
    RoutedFleet,
    Router,
    Several,
    StartTime,
    Weighted,
    connections,
    tokens_times_requests,
)

SLO_SHARE = 0.99
MOST_LOAD = 1.6
NUM_HALVINGS = 8


class Result(NamedTuple):
    summary: Summary
    hit_share: float  # of the prompt tokens


@dataclass(frozen=True, slots=True)
class Setting:
    """A fleet, and the trace as it happened; `full_speed` is how fast it gives the fleet all that it carries."""

    config: FleetConfig
    workload: Workload
    mix: Mix
    carried: Capacity
    full_speed: float

    @classmethod
    def of(cls, config: FleetConfig, workload: Workload) -> Setting:
        requests = workload.requests
        num_prompt = sum(r.num_prompt_tokens for r in requests) / len(requests)
        mix = Mix(num_prompt, num_prompt, sum(r.num_output_tokens for r in requests) / len(requests))
        carried = capacity(config.cost, mix, config.slo, config.limits)
        work_s = carried.work_s * len(requests)
        return cls(config, workload, mix, carried, config.initial_replicas * workload.duration_s / work_s)

    def play(self, router: Router, load: float) -> Result:
        static = Static(self.config.initial_replicas)
        outcome = RoutedFleet(self.config, static, router).run(at_speed(self.workload, load * self.full_speed))
        num_hits = sum(sequence.num_hit_tokens for sequence in outcome.finished)
        num_prompt = sum(sequence.request.num_prompt_tokens for sequence in outcome.finished)
        return Result(summarise(outcome, self.config, 0.0), num_hits / num_prompt)

    def limit(self, make: Callable[[], Router]) -> float:
        """The highest load at which the SLO is met, by halving."""
        low, high = 0.0, MOST_LOAD
        for _ in range(NUM_HALVINGS):
            middle = (low + high) / 2
            if self.play(make(), middle).summary.slo_attainment >= SLO_SHARE:
                low = middle
            else:
                high = middle
        return low


def at_speed(workload: Workload, speed: float) -> Workload:
    """Requests of one instant (Mooncake's clock ticks every 3 s) are spread at random up to the next one."""
    random = Random(0)
    number = Counter(request.arrival_at for request in workload.requests)
    gaps = {at: later - at for at, later in pairwise(sorted(number)) if number[at] > 1}
    return Workload.of(
        workload.name,
        [
            r._replace(arrival_at=(r.arrival_at + random.random() * gaps.get(r.arrival_at, 0.0)) / speed)
            for r in workload.requests
        ],
    )


def routers(setting: Setting) -> dict[str, Callable[[], Router]]:
    cost, limits, mix = setting.config.cost, setting.config.limits, setting.mix
    start_s = StartTime(cost, limits, mix.num_prompt_tokens, mix.num_output_tokens)

    def reported(period_s: float) -> Router:
        return Best(start_s, Reported(limits, period_s), sees_hits=True)

    def own_sends() -> Router:
        return OwnSends(limits, setting.carried.prefill_s_per_token)

    return {
        "leastconn": lambda: Best(connections, Exact(limits)),
        "fewest requests of two": lambda: Best(connections, Exact(limits), of_two=True),
        "round robin": RoundRobin,
        "start time, exact": lambda: Best(start_s, Exact(limits)),
        "start time and hits, exact": lambda: Best(start_s, Exact(limits), sees_hits=True),
        "start time and hits of two, exact": lambda: Best(start_s, Exact(limits), sees_hits=True, of_two=True),
        "start time, 1 s old": lambda: Best(start_s, Reported(limits, 1.0)),
        "start time and hits, 1 s old": lambda: reported(1.0),
        "the same, 2 s old, two routers": lambda: Several([reported(2.0), reported(2.0)]),
        "own sends and hits": own_sends,
        "the same, two routers": lambda: Several([own_sends(), own_sends()]),
        "tokens x requests, hits, exact": lambda: Best(tokens_times_requests, Exact(limits), sees_hits=True),
        "leastconn, weights each 1 s": lambda: Weighted(1.0, mix.num_prompt_tokens),
        "leastconn, weights each 0.2 s": lambda: Weighted(0.2, mix.num_prompt_tokens),
        "bounded hash of the 1st block": lambda: BoundedHash(0),
        "bounded hash of the 2nd block": lambda: BoundedHash(1),
    }


@click.command()
@click.argument("trace")
@click.option("--replicas", default=8, show_default=True)
@click.option("--load", "loads", multiple=True, type=float, default=(0.6, 0.8, 0.9), show_default=True)
@click.option("--kv-tokens", default=EngineLimits().kv_tokens, show_default=True, help="cache of a replica")
def main(trace: str, replicas: int, loads: tuple[float, ...], kv_tokens: int) -> None:
    """Play TRACE (a file, or a made trace's name) through a fleet behind each router."""
    limits = EngineLimits(kv_tokens=kv_tokens)
    config = FleetConfig(limits=limits, initial_replicas=replicas, max_ongoing_requests=UNBOUNDED)
    setting = Setting.of(config, load_workload(trace, 1))
    columns = [f"{name} at {load:.0%}" for load in loads for name in ("SLO met", "TTFT p50, p99", "hits")]
    table = Table("router", *columns, f"load at {SLO_SHARE:.0%}", title=f"{trace}, {replicas} replicas", box=None)
    for name, make in routers(setting).items():
        cells = [cell for load in loads for cell in _cells(setting.play(make(), load))]
        table.add_row(name, *cells, f"{setting.limit(make):.2f}")
    Console(width=200).print(table)


def _cells(result: Result) -> tuple[str, str, str]:
    summary = result.summary
    return (
        f"{summary.slo_attainment:.1%}",
        f"{summary.ttft_p50_s:.2f} {summary.ttft_p99_s:.1f} s",
        f"{result.hit_share:.0%}",
    )


if __name__ == "__main__":
    main()
