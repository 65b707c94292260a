"""Command-line options that `run`, `replay` and `sweep` share, gathered into one value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from loadtest.errors import ScenarioError
from loadtest.experiment import Where
from loadtest.scenario import parse_slo
from loadtest.spec import Scenario
from loadtest.target import check_host


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """As given; see `--help` for each."""

    url: str
    model: str | None
    api_key_env: str | None
    target_host_ok: bool
    settings: tuple[str, ...]
    rate: float | None
    duration: float | None
    seed: int | None
    slo: str | None
    verify: float | None
    workers: int | None
    json_path: Path | None
    csv_path: Path | None
    html_path: Path | None

    def overrides(self) -> list[str]:
        """The short options as `key=value`, then `--set`, which is more specific."""
        short = (
            ("arrivals.rate_rps", self.rate),
            ("arrivals.duration_s", self.duration),
            ("seed", self.seed),
            ("verify_share", self.verify),
        )
        return [f"{key}={value}" for key, value in short if value is not None] + list(self.settings)

    def where(self, scenario: Scenario) -> Where:
        """The server, checked for being allowed. Raises TargetError."""
        key = scenario.workload.tenants[0].key()
        return Where(url=check_host(self.url, is_other_host_ok=self.target_host_ok), model=self.model, api_key=key)

    def complete(self, scenario: Scenario) -> Scenario:
        """The scenario with the SLO and, for tenants that bring none, the API key given here."""
        update: dict[str, Any] = {}
        if self.slo is not None:
            update["slo"] = parse_slo(self.slo)
        if self.api_key_env is not None:
            tenants = tuple(
                tenant if tenant.key() is not None else tenant.model_copy(update={"api_key_env": self.api_key_env})
                for tenant in scenario.workload.tenants
            )
            update["workload"] = scenario.workload.model_copy(update={"tenants": tenants})
        return scenario.model_copy(update=update)

    def check_outputs(self) -> None:
        """Better now than after an hour. Raises ScenarioError."""
        for path in (self.json_path, self.csv_path, self.html_path):
            if path is not None and not path.parent.is_dir():
                raise ScenarioError(f"The folder of {path} does not exist.")


_PATH = click.Path(dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Base URL of the server."),
    click.option("--model", help="Model to ask for; the server's first one if not given."),
    click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the API key."),
    click.option("--target-host-ok", is_flag=True, help="Allow a server on another machine: it is mine to load."),
    click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a scenario value, by dotted key."
    ),
    click.option("--rate", type=float, help="Requests per second (arrivals.rate_rps)."),
    click.option("--duration", type=float, help="Seconds (arrivals.duration_s)."),
    click.option("--seed", type=int, help="Seed of every random stream."),
    click.option(
        "--slo", metavar="LIMITS", help="ttft=0.5,tpot=0.05,e2e=10,share=0.95: seconds, and share of requests."
    ),
    click.option("--verify", type=float, metavar="SHARE", help="Repeat this share of requests alone; same text?"),
    click.option("--workers", type=click.IntRange(1, 64), help="Processes; as many as the load needs if not given."),
    click.option("--json", "json_path", type=_PATH, help="Write the result (schema: docs/loadtest.md)."),
    click.option("--csv", "csv_path", type=_PATH, help="Write one line per request."),
    click.option("--html", "html_path", type=_PATH, help="Write the report page."),
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the shared options; the command receives them as its first argument, a `RunOptions`."""

    @functools.wraps(command)
    def gathered(**values: Any) -> None:
        shared = RunOptions(**{field.name: values.pop(field.name) for field in fields(RunOptions)})
        command(shared, **values)

    decorated: Callable[..., None] = gathered
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
