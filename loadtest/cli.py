"""`headcount-loadtest`: run, replay, sweep, report, compare, schema. Exit codes: 0 the SLO held, 1 it broke, 2 the
command could not be carried out, 3 the run is invalid or was stopped early."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from loadtest.compare import caveats, compare
from loadtest.errors import LoadTestError
from loadtest.options import RunOptions, run_options
from loadtest.perform import perform_run, perform_sweep
from loadtest.report import render_html
from loadtest.results import load_result, schema_table
from loadtest.scenario import load_scenario, parse_scenario
from loadtest.show import show_comparison
from loadtest.spec import Scenario
from loadtest.sweep import Bounds

_EXISTING = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def cli() -> None:
    """Load tests for OpenAI-compatible servers, measured from when each request was due."""


def _scenario(options: RunOptions, name: str | None) -> Scenario:
    """The named scenario, or Poisson arrivals with the options given (1 request/s for 30 s without any)."""
    if name is not None:
        return options.complete(load_scenario(name, options.overrides()))
    plain = {"name": "poisson", "arrivals": {"kind": "poisson", "rate_rps": 1.0, "duration_s": 30.0}}
    return options.complete(parse_scenario(plain, options.overrides()))


@cli.command()
@click.argument("scenario", required=False)
@run_options
def run(options: RunOptions, scenario: str | None) -> None:
    """Run SCENARIO (a YAML file, or a name that comes with the tool) and say whether its SLO held."""
    sys.exit(perform_run(options, _scenario(options, scenario), Console()))


@cli.command()
@click.argument("trace", type=_EXISTING)
@click.option("--speed", type=float, default=1.0, help="Times as fast as it happened.")
@click.option("--start", "start_s", type=float, default=0.0, help="Second of the trace to start at.")
@click.option("--length", "length_s", type=float, help="Seconds of the trace to play.")
@click.option("--loops", type=int, default=1, help="Times over.")
@click.option("--token-scale", type=float, default=1.0, help="Factor for prompt and output lengths.")
@run_options
def replay(options: RunOptions, trace: Path, **shape: Any) -> None:
    """Replay TRACE (Azure, BurstGPT, Mooncake or ServeGen format)."""
    raw = {"name": trace.name, "arrivals": {"kind": "trace", "path": str(trace), **shape}}
    scenario = options.complete(parse_scenario(raw, options.overrides()))
    sys.exit(perform_run(options, scenario, Console()))


@cli.command()
@click.argument("scenario", required=False)
@click.option("--start", "start_rps", type=float, default=1.0, help="First rate to try (requests/s).")
@click.option("--lowest", "lowest_rps", type=float, default=Bounds.lowest_rps, help="Give up below this rate.")
@click.option("--highest", "highest_rps", type=float, default=Bounds.highest_rps, help="Stop at this rate.")
@click.option("--tolerance", type=float, default=Bounds.tolerance, help="Stop when the bracket is this narrow (ratio).")
@click.option("--max-steps", type=int, default=Bounds.max_steps, help="Rates to try at most.")
@run_options
def sweep(options: RunOptions, scenario: str | None, **bounds: Any) -> None:
    """Find the highest rate that holds the SLO."""
    found = _scenario(options, scenario)
    if found.slo is None:
        raise click.UsageError("A sweep needs an SLO: --slo ttft=0.5,tpot=0.05")
    if options.rate is not None:
        raise click.UsageError("A sweep chooses its rates: --start says where it begins.")
    if options.csv_path is not None or options.html_path is not None:
        raise click.UsageError("A sweep writes --json only; run the rate it finds for --csv and --html.")
    sys.exit(perform_sweep(options, found, found.slo, Bounds(**bounds), Console()))


@cli.command()
@click.argument("result", type=_EXISTING)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the page goes.")
def report(result: Path, html: Path) -> None:
    """Draw the page of RESULT (a JSON file of `run`)."""
    html.write_text(render_html(load_result(result)))


@cli.command(name="compare")
@click.argument("a", type=_EXISTING)
@click.argument("b", type=_EXISTING)
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the ratios.")
def compare_command(a: Path, b: Path, json_path: Path | None) -> None:
    """Put two results side by side: ratios B / A with intervals."""
    first, second = load_result(a), load_result(b)
    rows, cautions = compare(first, second), caveats(first, second)
    if json_path is not None:
        json_path.write_text(
            json.dumps({"ratios": [asdict(row) for row in rows], "cautions": cautions}, indent=1) + "\n"
        )
    show_comparison(rows, cautions, Console())


@cli.command()
def schema() -> None:
    """Print the result's JSON schema as a Markdown table."""
    click.echo("\n".join(["| key | meaning |", "|---|---|", *schema_table()]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. What goes wrong outside the tester is one sentence and exit code 2."""
    try:
        cli(arguments)
    except LoadTestError as error:
        click.echo(f"headcount-loadtest: {error}", err=True)
        sys.exit(2)
