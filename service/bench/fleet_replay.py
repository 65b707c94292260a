"""A slice of a real trace, played against a real fleet of synthetic replicas, and what the simulator says of the same.

    python -m service.bench.fleet_replay AzureLLMInferenceTrace_conv.csv

Ray Serve, HAProxy, HTTP, load tester and autoscaler are real; a step of an engine costs what `COST` says instead of
computing, so that a dozen replicas fit on a small machine. Then the same requests go through the simulator with the
same law, costs, limits and choice of a replica, and the cold start that was measured.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.signals import EngineLimits
from service.autoscaling.simulator.fleet import FleetConfig
from service.autoscaling.simulator.headcount import Headcount
from service.autoscaling.simulator.measures import Summary, summarise
from service.autoscaling.simulator.sequence import prefill_alone_s
from service.autoscaling.simulator.workload import SimulatedRequest, Workload
from service.autoscaling.slo import Slo
from service.bench.routers import UNBOUNDED, RoutedFleet, Weighted
from service.bench.serving import flags_of, running_server
from service.engine.synthetic import StepCost
from service.fleet import weight

COST = StepCost(base_s=0.2, per_sequence_s=0.01, per_prefill_token_s=1e-4, per_context_token_s=1e-7)
SLO = Slo(ttft_s=3.0, tpot_s=0.5)
LIMITS = EngineLimits(max_num_seqs=48, max_num_batched_tokens=512, kv_tokens=1 << 20)
REPLICA_S_PER_MISS = 30.0
MAX_MODEL_LEN = 32_768  # the synthetic tokenizer makes a token of each byte
MAX_WAIT_S = 600.0  # the simulated fleet turns nothing away either
WARM_UP_S = 180.0  # what the simulator's own tables leave out


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The same figures as the simulator's summary, of the real fleet. Replicas that drain are not counted."""

    slo_attainment: float
    replica_seconds: float
    cost: float
    ttft_p50_s: float
    ttft_p99_s: float
    scale_events: int
    num_requests: int
    num_missed: int
    failures: tuple[str, ...]
    most_replicas: int
    start_times_s: tuple[float, ...]


@click.command()
@click.argument("trace", type=click.Path(exists=True, path_type=Path))
@click.option("--start", default=0.0, show_default=True, help="second of the trace to start at")
@click.option("--length", default=1080.0, show_default=True, help="seconds of the trace")
@click.option("--speed", default=1.8, show_default=True, help="times as fast as it happened")
@click.option("--token-scale", default=0.1, show_default=True, help="factor for prompt and output lengths")
@click.option("--max-replicas", default=14, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="write the result here")
def main(
    trace: Path,
    start: float,
    length: float,
    speed: float,
    token_scale: float,
    max_replicas: int,
    json_path: Path | None,
) -> None:
    """Replay TRACE against a fleet and in the simulator."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        replay = [str(trace), "--start", str(start), "--length", str(length), "--speed", str(speed)]
        began_at = _play(folder, [*replay, "--token-scale", str(token_scale)], max_replicas)
        rows = list(csv.DictReader((folder / "requests.csv").open()))
        decisions = [json.loads(line) for line in next(folder.glob("*/decisions.jsonl")).open()]
    live = _live(rows, decisions, began_at)
    simulated = _simulated(rows, live.start_times_s, max_replicas)
    ratio = live.replica_seconds / simulated.replica_seconds
    result = {"trace": trace.name, "live": asdict(live), "simulated": asdict(simulated), "replica_seconds_ratio": ratio}
    click.echo(json.dumps(result, indent=2))
    if json_path is not None:
        json_path.write_text(json.dumps(result | {"replicas": _replicas(decisions, began_at)}))


def _play(folder: Path, replay: list[str], max_replicas: int) -> float:
    """Run the service and the load tester; returns the Unix time at which the load began."""
    settings = {
        "runner": "synthetic",
        "speculation": "off",  # a step is to cost what COST says
        "synthetic-cost": json.dumps(asdict(COST)),
        "max-num-seqs": LIMITS.max_num_seqs,
        "max-num-batched-tokens": LIMITS.max_num_batched_tokens,
        "min-replicas": 1,
        "max-replicas": max_replicas,
        "max-model-len": MAX_MODEL_LEN,
        "slo-ttft-s": SLO.ttft_s,
        "slo-tpot-s": SLO.tpot_s,
        "queue-timeout-s": MAX_WAIT_S,
        "state-dir": folder,
    }
    with running_server(*flags_of(settings)) as server:
        files = ["--csv", str(folder / "requests.csv"), "--json", str(folder / "result.json")]
        load = [sys.executable, "-m", "loadtest", "replay", *replay, "--url", f"http://127.0.0.1:{server.port}", *files]
        subprocess.run(load, check=False, stdout=sys.stderr)  # noqa: S603 - a broken SLO is an exit status of its own
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return datetime.fromisoformat(result["started_at"]).timestamp()


def _live(rows: list[dict[str, str]], decisions: list[dict[str, Any]], began_at: float) -> Live:
    end_s = max(float(row["intended_s"]) for row in rows)
    start_s = WARM_UP_S if end_s > 2 * WARM_UP_S else 0.0  # as the simulator counts
    counted = [row for row in rows if float(row["intended_s"]) >= start_s]
    num_missed = sum(not _meets(row) for row in counted)
    series = [(at, number) for at, number in _replicas(decisions, began_at) if start_s <= at <= end_s]
    replica_s = sum(number * (later - at) for (at, number), (later, _) in pairwise(series))
    ttfts = [float(row["ttft_s"]) for row in counted if row["ttft_s"]]
    p50, p99 = np.percentile(ttfts, [50, 99])
    starts = [seconds for decision in decisions[-1:] for seconds in decision["snapshot"]["start_times_s"]]
    return Live(
        slo_attainment=1.0 - num_missed / len(counted),
        replica_seconds=replica_s,
        cost=replica_s + REPLICA_S_PER_MISS * num_missed,
        ttft_p50_s=float(p50),
        ttft_p99_s=float(p99),
        scale_events=sum(a["desired"] != b["desired"] for a, b in pairwise(decisions)),
        num_requests=len(counted),
        num_missed=num_missed,
        failures=tuple(
            f"{float(row['intended_s']):.1f} s: {row['outcome']} {row['status']} {row['code']} {row['message']}"
            for row in rows
            if row["outcome"] != "ok"
        ),
        most_replicas=max(number for _, number in series),
        start_times_s=tuple(starts),
    )


def _replicas(decisions: list[dict[str, Any]], began_at: float) -> list[tuple[float, int]]:
    """Replicas, ready and starting, by second of the load."""
    return [(decision["at"] - began_at, decision["current"]) for decision in decisions]


def _meets(row: dict[str, str]) -> bool:
    """As the simulator judges: the prompt's own time apart."""
    if row["outcome"] != "ok":
        return False
    wait_s = float(row["ttft_s"]) - prefill_alone_s(int(row["prompt_tokens"]), COST, LIMITS)
    return wait_s <= SLO.ttft_s and float(row["tpot_s"] or 0.0) <= SLO.tpot_s


def _simulated(rows: list[dict[str, str]], start_times_s: tuple[float, ...], max_replicas: int) -> Summary:
    requests = [
        SimulatedRequest(float(row["intended_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in rows
        if row["outcome"] == "ok"
    ]
    cold_start_s = median(start_times_s)
    law = AutoscalingConfig(
        slo=SLO, replica_s_per_miss=REPLICA_S_PER_MISS, min_replicas=1, max_replicas=max_replicas, cost_prior=COST
    )
    fleet = FleetConfig(cost=COST, limits=LIMITS, slo=SLO, cold_start_s=cold_start_s, max_ongoing_requests=UNBOUNDED)
    mean = sum(request.num_prompt_tokens for request in requests) / len(requests)
    router = Weighted(weight.PERIOD_S, mean)
    outcome = RoutedFleet(fleet, Headcount(law), router).run(Workload.of("replay", requests))
    return summarise(outcome, fleet, REPLICA_S_PER_MISS, WARM_UP_S)


if __name__ == "__main__":
    main()
