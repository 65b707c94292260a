"""`headcount explain`: what the autoscaler decided, and why, in words; from a running service or from its record."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from service.errors import HeadcountError

Decision = Mapping[str, Any]

TIMEOUT_S = 10.0
_EVENT = "data: "


class ExplainError(HeadcountError):
    """The record cannot be read, or the service not reached."""

    label = "explain_failed"


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="the service to ask")
@click.option("--api-key-env", metavar="NAME", help="environment variable with an API key for it")
@click.option(
    "--file", "path", type=click.Path(path_type=Path), help="a record on disk (decisions.jsonl in state_dir) instead"
)
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 3600), help="how many decisions")
@click.option("--every", is_flag=True, help="also those that left the fleet as it was")
@click.option("--follow", is_flag=True, help="go on as decisions come (not with --file)")
@click.option("--terms", is_flag=True, help="every number behind each decision")
@click.option("--json", "as_json", is_flag=True, help="print JSON lines")
def explain(  # noqa: PLR0913, PLR0917 - one for each option
    url: str,
    api_key_env: str | None,
    path: Path | None,
    last: int,
    every: bool,
    follow: bool,
    terms: bool,
    as_json: bool,
) -> None:
    """Say what the autoscaler decided and why: the latest changes, and how things stand."""
    if path is not None and follow:
        raise click.UsageError("--follow is for a running service, not for a file.")
    service = _Service(url, _headers(api_key_env))
    decisions = _of_file(path, last, every=every) if path is not None else service.latest(last, every=every)
    _print(decisions, terms=terms, as_json=as_json)
    if follow:
        _print(service.followed(_number_of_last(decisions), every=every), terms=terms, as_json=as_json)


def _of_file(path: Path, last: int, *, every: bool) -> list[Decision]:
    try:
        with path.open(encoding="utf-8") as lines:
            decisions = [json.loads(line) for line in lines]
        return _selected(decisions, last, every=every)
    except (OSError, UnicodeDecodeError, ValueError, TypeError, KeyError) as error:
        raise ExplainError(f"{path} is not a record of decisions: {error}.") from None


def _selected(decisions: list[Decision], last: int, *, every: bool) -> list[Decision]:
    """The latest `last` that matter, and the newest of all: how things stand."""
    newest = decisions[-1:]
    kept = [each for each in decisions[:-1] if every or each["desired"] != each["current"]]
    kept = [each for each in kept if each["number"] != newest[0]["number"]][-(last - 1) :] if last > 1 else []
    return kept + newest


def _headers(api_key_env: str | None) -> dict[str, str]:
    if api_key_env is None:
        return {}
    if api_key_env not in os.environ:
        raise ExplainError(f"The environment variable {api_key_env} is not set.")
    return {"authorization": f"Bearer {os.environ[api_key_env]}"}


@dataclass(frozen=True, slots=True)
class _Service:
    """The decisions of a running service."""

    url: str
    headers: Mapping[str, str]

    def latest(self, last: int, *, every: bool) -> list[Decision]:
        newest = self._get({"limit": 1})
        if not newest:
            return newest
        return _selected([*self._get({"limit": last, "changes": not every}), *newest], last, every=every)

    def followed(self, since: int, *, every: bool) -> Iterator[Decision]:
        parameters: dict[str, int | bool] = {"since": since, "stream": True, "changes": not every}
        try:
            with httpx.stream(
                "GET",
                f"{self.url}/fleet/decisions",
                params=parameters,
                headers=self.headers,
                timeout=httpx.Timeout(TIMEOUT_S, read=60),
                trust_env=False,
            ) as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    if line.startswith(_EVENT):
                        yield json.loads(line.removeprefix(_EVENT))
        except (httpx.HTTPError, ValueError) as error:
            raise ExplainError(f"{self.url} does not tell its decisions any more: {error}.") from None

    def _get(self, parameters: Mapping[str, int | bool]) -> list[Decision]:
        url = f"{self.url}/fleet/decisions"
        try:
            response = httpx.get(url, params=parameters, headers=self.headers, timeout=TIMEOUT_S, trust_env=False)
            response.raise_for_status()
            found: list[Decision] = response.json()["decisions"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise ExplainError(f"{self.url} does not tell its decisions: {error}.") from None
        return found


def _number_of_last(decisions: list[Decision]) -> int:
    return int(decisions[-1]["number"]) if decisions else 0


def _print(decisions: Iterable[Decision], *, terms: bool, as_json: bool) -> None:
    for decision in decisions:
        if as_json:
            click.echo(json.dumps(decision, ensure_ascii=False))
            continue
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(decision["at"]))
        click.echo(f"{at}  {decision['reason']}")
        for name, value in decision["terms"].items() if terms else ():
            click.echo(f"    {name:30} {'unknown' if value is None else f'{value:.6g}'}")
