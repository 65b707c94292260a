"""The `headcount` command. Every error is one sentence on standard error and exit status 1 (2 for wrong usage)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from service import __version__
from service.autoscaling.command import simulate
from service.config import LoadedSettings, Settings, load_settings
from service.errors import HeadcountError
from service.explain import explain
from service.key import make_key

console = Console(stderr=True, highlight=False)

# How long an idle compute thread spins before it sleeps, for the OpenMP runtime that PyTorch brings; read when torch is
# imported, here or in a replica that Ray starts. The default burns the core that the HTTP side, or a neighbour, then
# needs: decode was 8 times slower (docs/decisions/0004-threads-that-sleep.md).
SPIN_VARIABLE = "GOMP_SPINCOUNT"
SPIN_COUNT = "3000"


class Cli(click.Group):
    """Turns our errors into one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HeadcountError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="headcount")
def main() -> None:
    """An autoscaling LLM inference service.

    Settings come from defaults < a TOML file (--config) < HEADCOUNT_* variables < flags; `headcount config` shows them.
    """
    os.environ.setdefault(SPIN_VARIABLE, SPIN_COUNT)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag for each setting; it gets the merged `LoadedSettings` as its first argument."""

    def run(**options: Any) -> None:
        flags = {key: options.pop(key) for key in (*Settings.model_fields, "config")}
        given = {key: value for key, value in flags.items() if value is not None}
        command(load_settings(flags=given, environment=os.environ), **options)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    for key, field in reversed(Settings.model_fields.items()):
        default = field.get_default()
        shown = "" if default is None else f"  [default: {default}]"
        run = click.option(f"--{key.replace('_', '-')}", key, metavar="VALUE", help=f"{field.description}{shown}")(run)
    run = click.option("--config", metavar="FILE", help="TOML file with settings")(run)
    run.__click_params__ += getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    return run


@main.command()
@with_settings
def serve(loaded: LoadedSettings) -> None:
    """Start the service on this machine and keep it running until Ctrl-C or SIGTERM."""
    from service.fleet.server import run_server  # noqa: PLC0415 - Ray is slow to import

    settings = loaded.settings
    run_server(settings, say=console.print, on_ready=lambda: _say_ready(settings))


@main.command()
@click.argument("prompt")
@click.option("--max-tokens", default=256, show_default=True, help="most tokens to generate")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy")
@click.option("--seed", type=int, help="for temperatures above 0")
@click.option("--raw", is_flag=True, help="continue the text instead of answering it as a chat message")
@with_settings
def generate(
    loaded: LoadedSettings, prompt: str, max_tokens: int, temperature: float, seed: int | None, raw: bool
) -> None:
    """Generate text here and now: no server, no Ray."""
    from service.llm import LLM  # noqa: PLC0415 - torch is slow to import
    from service.types import SamplingParams  # noqa: PLC0415

    sampling = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with _download_progress() as progress:
        llm = LLM.load(loaded.settings, progress)
    pieces = llm.complete(prompt, sampling) if raw else llm.chat([{"role": "user", "content": prompt}], sampling)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


@main.command()
@click.option("--against", multiple=True, type=click.Choice(["transformers"]), help="measure a peer in the same run")
@click.option("--profile", "profiles", is_flag=True, help="split a step's time instead")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_settings
def bench(loaded: LoadedSettings, against: tuple[str, ...], profiles: bool, as_json: bool) -> None:
    """Measure prefill and decode throughput against the machine's roof, and against peers."""
    from service.bench.command import bench as compare  # noqa: PLC0415 - torch is slow to import
    from service.bench.profile import profile  # noqa: PLC0415

    if profiles and against:
        raise click.UsageError("--profile looks at this engine alone: leave out --against.")
    if profiles:
        profile(loaded.settings, as_json=as_json)
    else:
        compare(loaded.settings, against, as_json=as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@with_settings
def config(loaded: LoadedSettings, as_json: bool) -> None:
    """Print every setting in force and where it came from."""
    values = loaded.settings.model_dump(mode="json")
    if as_json:
        click.echo(json.dumps({key: {"value": value, "from": loaded.origins[key]} for key, value in values.items()}))
        return
    table = Table("setting", "value", "from", "meaning", box=None)
    for key, value in values.items():
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
        table.add_row(key, text, loaded.origins[key], Settings.model_fields[key].description)
    Console().print(table)


@main.group()
def model() -> None:
    """Fetch and prepare models."""


@model.command("prepare")
@click.option("--portable", is_flag=True, help="for any processor, as a container image needs it; runs nothing")
@with_settings
def prepare(loaded: LoadedSettings, portable: bool) -> None:
    """Download the model if need be, check that it can run here, and prepare its weights and the native kernels."""
    from service.assembly import load_engine  # noqa: PLC0415 - torch is slow to import

    settings = loaded.settings
    with _download_progress() as progress:
        if portable:
            from service.model.hub import resolve_model  # noqa: PLC0415
            from service.model.loader import prepare_portable  # noqa: PLC0415

            path = resolve_model(settings.model, settings.cache_path, progress)
            prepare_portable(
                path, dtype=settings.dtype, quantization=settings.quantization, cache_dir=settings.cache_path
            )
        else:
            load_engine(settings, progress=progress)
    console.print(f"{settings.model_id} is ready in {settings.cache_path}.")


main.add_command(simulate)
main.add_command(explain)
main.add_command(make_key)


@contextmanager
def _download_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar that appears when there is something to download."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=console)
    tasks: list[TaskID] = []

    def report(num_bytes: int, total: int) -> None:
        if not tasks:
            progress.start()
            tasks.append(progress.add_task("Downloading the model", total=total))
        progress.update(tasks[0], completed=num_bytes, total=total)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()


def _say_ready(settings: Settings) -> None:
    url = settings.url
    body = json.dumps(
        {
            "model": settings.model_id,
            "messages": [{"role": "user", "content": "Why is the sky blue?"}],
            "max_tokens": 200,  # a small model may ramble on to the end of its context
            "stream": True,
        }
    )
    click.echo(
        f"""
Ready. Try:

  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'

  API documentation  {url}/docs
  Metrics            {url}/metrics
  Fleet              {url}/fleet, and in words: headcount explain --url {url}

Ctrl-C drains and stops.
"""
    )


if __name__ == "__main__":
    main()
