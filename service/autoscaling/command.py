"""`headcount simulate`: what would this policy, or that, have done with this demand, and what would it have cost?"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.simulator import html, regret
from service.autoscaling.simulator.fleet import Fleet, FleetConfig
from service.autoscaling.simulator.made_traces import SHAPES, made_trace
from service.autoscaling.simulator.measures import Summary, summarise
from service.autoscaling.simulator.policies import POLICIES, Choice, Setting
from service.autoscaling.simulator.trace_files import read_trace
from service.autoscaling.simulator.workload import Workload
from service.autoscaling.slo import Slo
from service.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """The command line."""

    trace: str | None
    times: int
    policies: tuple[str, ...]
    cold_start: float
    slo: str
    price: float
    min_replicas: int
    max_replicas: int
    refuse_late: bool
    as_json: bool
    html_path: Path | None
    traces_dir: Path | None
    results_path: Path | None


_REFUSED_AFTER = 0.75  # of the TTFT target: the rest is for the prompt itself in a full batch
_DEFAULT_POLICIES = ("headcount", "ray", "kpa", "keda-ongoing", "static", "perfect")


@click.command()
@click.option("--trace", help=f"a file (Azure, BurstGPT, Mooncake, ServeGen, decisions), or {', '.join(SHAPES)}")
@click.option("--times", default=1, show_default=True, type=click.IntRange(1, 1000), help="play each request so often")
@click.option("--policy", "policies", multiple=True, help=f"NAME or NAME=PARAMETER, repeatable: {', '.join(POLICIES)}")
@click.option("--cold-start", default=15.0, show_default=True, help="seconds from asked for to ready")
@click.option("--slo", default="ttft=2,tpot=0.1", show_default=True, help="targets in seconds")
@click.option("--price", default=30.0, show_default=True, help="replica-seconds that it is worth to spare one miss")
@click.option("--min-replicas", default=1, show_default=True)
@click.option("--max-replicas", default=24, show_default=True)
@click.option(
    "--refuse-late",
    is_flag=True,
    help=f"turn away what has waited for {_REFUSED_AFTER:.0%} of the TTFT target without being begun",
)
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="write a page with plots")
@click.option(
    "--bars",
    "traces_dir",
    type=click.Path(path_type=Path),
    help="instead of one trace: the published matrix, from the public traces in this directory (an hour of computing)",
)
@click.option(
    "--results", "results_path", type=click.Path(path_type=Path), help="with --bars: keep what is computed here"
)
def simulate(**values: Any) -> None:
    """Play a demand trace through a simulated fleet under one or more scaling policies and compare them.

    Time is virtual: an hour of real traffic takes seconds.
    """
    options = _Options(**values)
    config = AutoscalingConfig(
        slo=parse_slo(options.slo),
        replica_s_per_miss=options.price,
        min_replicas=options.min_replicas,
        max_replicas=options.max_replicas,
        refuses_late=options.refuse_late,
        cold_start_prior_s=options.cold_start,
    )
    fleet = FleetConfig(
        slo=config.slo,
        cold_start_s=options.cold_start,
        initial_replicas=max(1, options.min_replicas),
        max_wait_s=_REFUSED_AFTER * config.slo.ttft_s if options.refuse_late else math.inf,
    )
    if options.traces_dir is not None:
        _print_bars(options.traces_dir, options.results_path, config, fleet)
        return
    if options.trace is None:
        raise ConfigError(f"Say which demand to play: --trace FILE, or one of {', '.join(SHAPES)}.")
    choices = [Choice.parse(text) for text in options.policies or _DEFAULT_POLICIES]
    _compare(choices, Setting(config, fleet, load_workload(options.trace, options.times)), options)


def _compare(choices: list[Choice], setting: Setting, options: _Options) -> None:
    """Run each choice; write the page if asked, print the table or the JSON."""
    config, fleet, name = setting.config, setting.fleet, setting.workload.name
    runs = _run_all(choices, setting)
    if options.html_path is not None:
        targets = f"TTFT {config.slo.ttft_s:g} s, TPOT {config.slo.tpot_s:g} s"
        subtitle = f"cold start {fleet.cold_start_s:g} s, {targets}, {config.replica_s_per_miss:g} replica-s per miss"
        options.html_path.write_text(html.page(name, subtitle, runs, fleet.limits.max_num_seqs))
    if options.as_json:
        results = {run.label: asdict(run.summary) for run in runs}
        click.echo(json.dumps({"trace": name, "cold_start_s": fleet.cold_start_s, "policies": results}))
    else:
        Console().print(_table(runs))


def load_workload(trace: str, times: int) -> Workload:
    """A file where there is one, else a made trace. Raises ConfigError."""
    workload = read_trace(Path(trace)) if trace not in SHAPES else made_trace(trace)
    return workload if times == 1 else workload.times(times)


def parse_slo(text: str) -> Slo:
    """`ttft=2,tpot=0.1`, either one or both. Raises ConfigError, naming the part."""
    slo = Slo()
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            seconds = float(value)
        except ValueError:
            seconds = float("nan")
        if name == "ttft":
            slo = replace(slo, ttft_s=seconds)
        elif name == "tpot":
            slo = replace(slo, tpot_s=seconds)
        else:
            raise ConfigError(f"--slo knows ttft and tpot, as in ttft=2,tpot=0.1, but not {part.strip()!r}.")
    return slo


def _run_all(choices: list[Choice], setting: Setting) -> list[html.Run]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    runs = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for choice in choices:
            task = progress.add_task(choice.label, total=1.0)
            runs.append(_run(choice, setting, lambda share, task=task: progress.update(task, completed=share)))  # type: ignore[misc]
            progress.update(task, completed=1.0)
    return runs


def _run(choice: Choice, setting: Setting, on_progress: Callable[[float], None]) -> html.Run:
    fleet = setting.fleet
    if choice.name == "static":
        fleet = replace(fleet, initial_replicas=int(choice.parameter or 1))
    outcome = Fleet(fleet, choice.controller(setting)).run(setting.workload, on_progress)
    return html.Run(choice.label, outcome, summarise(outcome, fleet, setting.config.replica_s_per_miss))


def _table(runs: list[html.Run]) -> Table:
    table = Table(
        "policy", "SLO met", "replica-h", "cost, replica-h", "TTFT p50", "TTFT p99", "changes", "cut", box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for run in runs:
        table.add_row(run.label, *_cells(run.summary))
    return table


def _cells(summary: Summary) -> tuple[str, ...]:
    return (
        f"{summary.slo_attainment:.2%}",
        f"{summary.replica_seconds / 3600:.2f}",
        f"{summary.cost / 3600:.2f}",
        f"{summary.ttft_p50_s:.2f} s",
        f"{summary.ttft_p99_s:.2f} s",
        str(summary.scale_events),
        str(summary.num_cut),
    )


def _print_bars(traces_dir: Path, results_path: Path | None, config: AutoscalingConfig, fleet: FleetConfig) -> None:
    cells = []
    with Console(stderr=True).status("computing") as status:
        for cell in regret.run_matrix(regret.matrix(traces_dir), config, fleet, regret.Results(results_path)):
            cells.append(cell)
            status.update(f"{cell.trace}, cold start {cell.cold_start_s:g} s: done")
    click.echo(regret.table(cells))
