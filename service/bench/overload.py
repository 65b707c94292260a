"""What becomes of five times the load that a fleet can carry, and of a quiet tenant beside one that floods.

    python -m service.bench.overload load --replicas 8
    python -m service.bench.overload fairness

Ray Serve, HAProxy, HTTP and load tester are real; a step of an engine costs what `COST` says instead of computing, so
that eight replicas fit on a small machine.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np

from service.autoscaling.slo import Slo
from service.bench.serving import flags_of, running_server
from service.engine.synthetic import StepCost

COST = StepCost(base_s=0.1, per_sequence_s=0.005, per_prefill_token_s=1e-4, per_context_token_s=1e-7)
SLO = Slo(ttft_s=2.0, tpot_s=0.25)
MAX_NUM_SEQS = 16
PROMPT_WORDS = 24
PROMPT_TOKENS = 135  # of so many words, with the template: the synthetic tokenizer makes a token of each byte
OUTPUT_TOKENS = 32
WARM_UP_S = 10.0
QUIET_SHARE = 0.25  # of what a replica carries
FLOOD = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of the requests that were due after the warm-up; goodput is in requests/s that met the SLO."""

    asked_rps: float
    goodput_rps: float
    accepted: int
    accepted_within_slo: float
    ttft_p50_s: float
    ttft_p99_s: float
    refused: int
    refusal_p50_s: float
    refusal_p99_s: float
    retry_after_p50_s: float
    other_failures: tuple[str, ...]


def capacity_rps(num_replicas: int) -> float:
    """Requests/s that keep every place busy, by the law of a step."""
    context = MAX_NUM_SEQS * (PROMPT_TOKENS + OUTPUT_TOKENS / 2)
    step_s = COST.of(MAX_NUM_SEQS, MAX_NUM_SEQS * PROMPT_TOKENS / OUTPUT_TOKENS, context)
    return num_replicas * MAX_NUM_SEQS / (OUTPUT_TOKENS * step_s)


@click.group()
def main() -> None:
    """Measure overload on a real fleet of synthetic replicas."""


@main.command()
@click.option("--replicas", default=1, show_default=True)
@click.option("--duration", default=60.0, show_default=True, help="seconds of load, the warm-up included")
def load(replicas: int, duration: float) -> None:
    """Once and five times what the fleet can carry."""
    capacity = capacity_rps(replicas)
    tenants = [{"name": "everyone"}]
    with tempfile.TemporaryDirectory() as name, running_server(*_flags(Path(name), replicas)) as server:
        runs = [_play(Path(name), server.port, factor * capacity, duration, tenants) for factor in (1.0, FLOOD)]
    figures = [_figures(rows, duration) for rows in runs]
    ratio = figures[1].goodput_rps / figures[0].goodput_rps
    _say({"capacity_rps": capacity, "once": figures[0], "five_times": figures[1], "goodput_ratio": ratio})


@main.command()
@click.option("--duration", default=90.0, show_default=True, help="seconds of load, the warm-up included")
def fairness(duration: float) -> None:
    """A tenant that asks for a quarter of a replica, alone and beside one that floods it."""
    capacity = capacity_rps(1)
    quiet = {"name": "quiet", "api_key": "quiet", "weight": QUIET_SHARE}
    flood = {"name": "flood", "api_key": "flood", "weight": FLOOD}
    with tempfile.TemporaryDirectory() as name:
        keys = Path(name) / "keys.toml"
        keys.write_text("".join(_entry(tenant) for tenant in ("quiet", "flood")))
        with running_server(*_flags(Path(name), 1), "--api-keys-file", str(keys)) as server:
            alone = _play(Path(name), server.port, QUIET_SHARE * capacity, duration, [quiet])
            both = _play(Path(name), server.port, (QUIET_SHARE + FLOOD) * capacity, duration, [quiet, flood])
    solo = _figures(alone, duration)
    beside = {
        tenant: _figures([row for row in both if row["tenant"] == tenant], duration) for tenant in ("quiet", "flood")
    }
    ratio = beside["quiet"].ttft_p99_s / solo.ttft_p99_s
    _say({"capacity_rps": capacity, "alone": solo, **beside, "quiet_ttft_p99_ratio": ratio})


def _entry(tenant: str) -> str:
    return f'[[tenant]]\nname = "{tenant}"\nkeys = ["{sha256(tenant.encode()).hexdigest()}"]\n'


def _flags(folder: Path, replicas: int) -> list[str]:
    settings = {
        "runner": "synthetic",
        "speculation": "off",  # a step is to cost what COST says
        "synthetic-cost": json.dumps(asdict(COST)),
        "max-num-seqs": MAX_NUM_SEQS,
        "min-replicas": replicas,
        "max-replicas": replicas,
        "slo-ttft-s": SLO.ttft_s,
        "slo-tpot-s": SLO.tpot_s,
        "state-dir": folder,
    }
    return flags_of(settings)


def _play(
    folder: Path, port: int, rate_rps: float, duration_s: float, tenants: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """What became of each request."""
    scenario = {
        "arrivals": {"kind": "poisson", "rate_rps": rate_rps, "duration_s": duration_s},
        "workload": {"prompt_tokens": PROMPT_WORDS, "output_tokens": OUTPUT_TOKENS, "tenants": tenants},
    }
    path, requests = folder / "scenario.yaml", folder / "requests.csv"
    path.write_text(json.dumps(scenario))  # JSON is YAML
    command = [sys.executable, "-m", "loadtest", "run", str(path), "--url", f"http://127.0.0.1:{port}"]
    subprocess.run([*command, "--csv", str(requests)], check=False, stdout=sys.stderr)  # noqa: S603 - failures are counted
    return list(csv.DictReader(requests.open()))


def _figures(rows: list[dict[str, str]], duration_s: float) -> Figures:
    counted = [row for row in rows if float(row["intended_s"]) >= WARM_UP_S]
    accepted = [row for row in counted if row["outcome"] == "ok"]
    refused = [row for row in counted if row["status"] == "429"]
    good = [row for row in accepted if float(row["ttft_s"]) <= SLO.ttft_s and float(row["tpot_s"]) <= SLO.tpot_s]
    others = [row for row in counted if row["outcome"] != "ok" and row["status"] != "429"]
    span_s = duration_s - WARM_UP_S
    ttft_p50_s, ttft_p99_s = _percentiles([float(row["ttft_s"]) for row in accepted])
    refusal_p50_s, refusal_p99_s = _percentiles([float(row["e2e_from_send_s"]) for row in refused])
    return Figures(
        asked_rps=len(counted) / span_s,
        goodput_rps=len(good) / span_s,
        accepted=len(accepted),
        accepted_within_slo=len(good) / max(1, len(accepted)),
        ttft_p50_s=ttft_p50_s,
        ttft_p99_s=ttft_p99_s,
        refused=len(refused),
        refusal_p50_s=refusal_p50_s,
        refusal_p99_s=refusal_p99_s,
        retry_after_p50_s=_percentiles([float(row["retry_after_s"]) for row in refused])[0],
        other_failures=tuple(sorted({f"{row['outcome']} {row['status']} {row['message']}" for row in others})),
    )


def _percentiles(values: list[float]) -> tuple[float, float]:
    """The 50th and the 99th; zeros where there is nothing."""
    p50, p99 = np.percentile(values or [0.0], [50, 99])
    return float(p50), float(p99)


def _say(result: dict[str, Figures | float]) -> None:
    shown = {key: asdict(value) if isinstance(value, Figures) else value for key, value in result.items()}
    click.echo(json.dumps(shown, indent=2))


if __name__ == "__main__":
    main()
