"""The comparison as a command."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from service.bench.peers import rounds, streaming
from service.bench.peers.entrants import OURS, QUANTIZATION, Field
from service.config import load_settings
from service.errors import ConfigError, HeadcountError
from service.model.hub import resolve_model

LOADS = {
    "decode": [rounds.decode(size) for size in (1, 4, 16, 64)],
    "prefill": [rounds.prefill(512), rounds.prefill(2048)],
    "mixed": [rounds.mixed()],
}
HTTP = "http"
PARTS = (*LOADS, HTTP)


@click.command()
@click.option("--precision", "precisions", multiple=True, type=click.Choice(list(QUANTIZATION)), help="default: all")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="default: all")
@click.option("--rounds", "num_rounds", default=3, show_default=True, help="of which the median is taken")
@click.option("--threads", "num_threads", default=2, show_default=True, help="of each engine")
@click.option("--directory", default=".peers", show_default=True, type=click.Path(path_type=Path), help="of the peers")
@click.option("--install", "only_installs", is_flag=True, help="install the peers and make their weights, no more")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def main(
    precisions: tuple[str, ...],
    parts: tuple[str, ...],
    num_rounds: int,
    num_threads: int,
    directory: Path,
    only_installs: bool,
    as_json: bool,
) -> None:
    """Compare this engine with others on the default model's weights, on this machine, in this run."""
    errors = Console(stderr=True, highlight=False)
    try:
        field = Field(source=_source(), directory=directory.absolute(), num_threads=num_threads, say=errors.print)
        offline = {precision: field.offline(precision) for precision in precisions or QUANTIZATION}
        servers = field.servers(streaming.NUM_CLIENTS) if HTTP in (parts or PARTS) else []
    except HeadcountError as error:
        raise click.ClickException(str(error)) from error
    if only_installs:
        return
    loads = [load for part in parts or PARTS if part in LOADS for load in LOADS[part]]
    rates = {
        precision: rounds.compare(entrants, loads, num_rounds, errors.print)
        for precision, entrants in offline.items()
        if loads
    }
    latencies = {name: found.medians() for name, found in streaming.compare(servers, num_rounds, errors.print).items()}
    if as_json:
        click.echo(json.dumps({"threads": num_threads, "tokens_per_s": rates, "http": latencies}))
        return
    for precision, by_load in rates.items():
        _print_rates(f"tokens/s, {precision} weights", by_load)
    if latencies:
        _print_latencies(latencies)


def _source() -> Path:
    settings = load_settings(flags={}, environment=os.environ).settings
    source = resolve_model(settings.model, settings.cache_path)
    if source.suffix != ".gguf":
        raise ConfigError(f"model = {settings.model} is no GGUF file, which all peers read or can be given.")
    return source


def _print_rates(title: str, by_load: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """The last column is how often our rate is that of the best peer."""
    names = list(dict.fromkeys(name for rates in by_load.values() for name in rates))
    table = Table("", *names, "times the best peer", title=title)
    for load, rates in by_load.items():
        medians = {name: statistics.median(found) for name, found in rates.items()}
        best = max((rate for name, rate in medians.items() if name != OURS), default=0.0)
        ratio = f"{medians[OURS] / best:.2f}" if best and OURS in medians else ""
        table.add_row(load, *(f"{medians[name]:.0f}" if name in medians else "" for name in names), ratio)
    Console().print(table)


def _print_latencies(latencies: Mapping[str, Mapping[str, float]]) -> None:
    table = Table("", "TTFT p50", "TPOT p50", title=f"milliseconds, {streaming.NUM_CLIENTS} streams over HTTP")
    for name, medians in latencies.items():
        table.add_row(name, f"{medians['ttft_s'] * 1e3:.0f}", f"{medians['tpot_s'] * 1e3:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
