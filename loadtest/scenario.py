"""Reads a scenario from YAML and `key=value` overrides, and says in one sentence what is wrong with it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from loadtest.errors import ScenarioError
from loadtest.spec import Scenario, Slo

SCENARIOS = Path(__file__).parent / "scenarios"


def load_scenario(name_or_path: str, overrides: Iterable[str] = ()) -> Scenario:
    """The scenario of that file, or of that name among the ones shipped. Raises ScenarioError.

    Each override is `dotted.key=value` with the value in YAML: `arrivals.rate_rps=5`.
    """
    path = Path(name_or_path)
    if not path.exists() and path.suffix == "":
        path = SCENARIOS / f"{name_or_path}.yaml"
    if not path.exists():
        shipped = ", ".join(sorted(found.stem for found in SCENARIOS.glob("*.yaml")))
        raise ScenarioError(f"No scenario {name_or_path!r}: give a YAML file or one of {shipped}.")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ScenarioError(f"{path} must hold a mapping.")
    return parse_scenario({"name": path.stem, **raw}, overrides)


def parse_scenario(raw: Mapping[str, Any], overrides: Iterable[str] = ()) -> Scenario:
    """Raises ScenarioError naming the field, and the closest known one when it is unknown."""
    merged = dict(raw)
    for override in overrides:
        _apply(merged, override)
    try:
        return Scenario.model_validate(merged)
    except ValidationError as error:
        raise ScenarioError(describe(error)) from error


def parse_slo(text: str) -> Slo:
    """`ttft=0.5,tpot=0.05,e2e=10,share=0.99`: seconds, and the share of requests that must be good."""
    values: dict[str, str] = {}
    for part in text.split(","):
        key, separator, value = part.partition("=")
        if not separator:
            raise ScenarioError(f"--slo: {part!r} is not key=value.")
        values[key.strip() if key.strip() == "share" else f"{key.strip()}_s"] = value.strip()
    try:
        return Slo.model_validate(values)
    except ValidationError as error:
        raise ScenarioError(f"--slo: {describe(error)}") from error


def _apply(merged: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator:
        raise ScenarioError(f"--set: {override!r} is not key=value.")
    *parents, last = dotted.split(".")
    node = merged
    for parent in parents:
        child = node.get(parent)
        node[parent] = dict(child) if isinstance(child, dict) else {}
        node = node[parent]
    node[last] = yaml.safe_load(text)


def describe(error: ValidationError) -> str:
    """The first problem as one sentence."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the scenario"
    if first["type"] == "extra_forbidden":
        unknown = str(first["loc"][-1])
        close = difflib.get_close_matches(unknown, _known_fields(Scenario), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key.{hint}"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}."


def _known_fields(model: type[BaseModel]) -> list[str]:
    """Field names of a model and of every model below it in this package."""
    names: list[str] = []
    for name, definition in [("", model.model_json_schema()), *model.model_json_schema().get("$defs", {}).items()]:
        names += [name, *definition.get("properties", {})]
    return [name for name in names if name.islower()]
