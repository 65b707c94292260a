"""Rules and alerts: they name metrics that exist, fire when they should, and each has its page in the runbook."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.promql import FAMILIES, SERIES, names_in, unknown_in

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
WORLDS = sorted((FOLDER / "tests").glob("*.yaml"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

Rule = Mapping[str, Any]


def rules_of(name: str) -> list[Rule]:
    return [rule for group in yaml.safe_load((FOLDER / name).read_text())["groups"] for rule in group["rules"]]


RECORDED: dict[str, str] = {rule["record"]: rule["expr"] for rule in rules_of("rules.yaml")}
ALERTS = rules_of("alerts.yaml")
NAMES = sorted({rule["alert"] for rule in ALERTS})


def sections() -> dict[str, str]:
    heads = list(re.finditer(r"^## (\w+)$", RUNBOOK, re.MULTILINE))
    ends = [head.start() for head in heads[1:]] + [len(RUNBOOK)]
    return {head[1]: RUNBOOK[head.end() : end] for head, end in zip(heads, ends, strict=True)}


def read_from(rule: Rule) -> set[str]:
    """The scraped series that an alert depends on, through recorded ones too."""
    names = names_in(rule["expr"]) | set(re.findall(r"\bup(?={)", rule["expr"]))
    return {deep for name in names for deep in (names_in(RECORDED[name]) if name in RECORDED else {name})}


@functools.cache
def worlds() -> list[tuple[set[str], set[str]]]:
    """Of each world of the tests: the series in it, and the alerts that fire at some time."""
    found = []
    for path in WORLDS:
        for world in yaml.safe_load(path.read_text())["tests"]:
            series = {entry["series"].partition("{")[0] for entry in world["input_series"]}
            samples = [sample["labels"] for check in world["promql_expr_test"] for sample in check["exp_samples"]]
            found.append((series, {name for labels in samples for name in re.findall(r'alertname="(\w+)"', labels)}))
    return found


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_rules_and_configuration() -> None:
    """The files are what Prometheus reads, templates in annotations included."""
    promtool("check", "rules", FOLDER / "rules.yaml", FOLDER / "alerts.yaml")
    promtool("check", "config", FOLDER / "prometheus.yaml")


@pytest.mark.parametrize("path", WORLDS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    """In each made-up world exactly the named alerts fire, at the named times."""
    promtool("test", "rules", path)


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_is_tried_both_ways(name: str) -> None:
    """It fires in one world, and is silent in another that has every series it looks at."""
    needs = set.union(*(read_from(rule) for rule in ALERTS if rule["alert"] == name))
    assert any(name in firing for _, firing in worlds())
    assert any(needs <= series and name not in firing for series, firing in worlds()), needs


@pytest.mark.parametrize("rule", [*ALERTS, *rules_of("rules.yaml")], ids=lambda rule: rule.get("alert", "record"))
def test_rules_name_metrics_that_exist(rule: Rule) -> None:
    """Each name is in the catalog or recorded, and label names are those of the metric."""
    assert unknown_in(rule["expr"], set(RECORDED)) == set()
    for name, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", rule["expr"]):
        labels = set(re.findall(r"(\w+)\s*[=!]~?\"", matchers))
        assert labels <= (set(SERIES[name].labels) if name in SERIES else {"job"}), name


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_say_what_a_person_needs(rule: Rule) -> None:
    """How urgent, what, how much, and where the runbook tells more: its section's anchor."""
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page.endswith("/docs/runbook.md")
    assert anchor == rule["alert"].lower()


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    """In the order of the alerts, each with meaning, check and act."""
    assert list(sections()) == list(dict.fromkeys(rule["alert"] for rule in ALERTS))
    for name, text in sections().items():
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == ["Meaning", "Check", "Act"], name


def test_the_runbook_names_metrics_and_sections_that_exist() -> None:
    """A query that is typed at night works."""
    code = "\n".join("".join(found) for found in re.findall(r"`([^`\n]+)`|^    (.+)$", RUNBOOK, re.MULTILINE))
    assert unknown_in(code, set(RECORDED)) <= set(FAMILIES)
    assert set(re.findall(r"\(#(\w+)\)", RUNBOOK)) <= {name.lower() for name in NAMES}


def test_the_local_stack_scrapes_what_alerts_look_for() -> None:
    """Its rule files are there, and its job is found by the alerts that ask for targets."""
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert all((FOLDER / name).exists() for name in config["rule_files"])
    (job,) = config["scrape_configs"]
    patterns = {pattern for rule in ALERTS for pattern in re.findall(r'job=~"([^"]+)"', rule["expr"])}
    assert patterns
    assert all(re.fullmatch(pattern, job["job_name"]) for pattern in patterns)
