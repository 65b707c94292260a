"""The tables of faults, others' and those we must survive, name tests and scenarios that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from service.bench.chaos import SCENARIOS

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"\| (\d+) \| (.+) \| (.+) \|")
NODE = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")
SCENARIO = re.compile(r"chaos: ([^,;|]+)")
LAST_FAULT = 88


def rows() -> list[tuple[str, ...]]:
    lines = (ROOT / "tests" / "README.md").read_text().splitlines()
    return [match.groups() for line in lines if (match := ROW.fullmatch(line))]


def names_in(path: Path) -> set[str]:
    """Every `function` and `Class::method` of a file."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + each.name for each in members if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    return found


def test_every_fault_has_its_row() -> None:
    """Faults have the even numbers; each is there once, in order."""
    assert [int(number) for number, _, _ in rows()] == list(range(2, LAST_FAULT + 1, 2))


def test_every_fault_is_held_by_something() -> None:
    """By a test that exists, or by a reason that it cannot happen, or cannot happen yet."""
    for number, _, held_by in rows():
        nodes = NODE.findall(held_by)
        assert nodes or held_by.startswith(("later", "impossible")), number
        assert [(path, name) for path, name in nodes if name not in names_in(ROOT / path)] == [], number


def matrix() -> list[list[str]]:
    """The rows of the tables of docs/reliability.md that end with what proves them."""
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "---" not in line]
    return [row for row in rows if row[-1] != "proof"]


def test_every_promise_is_proven_by_something() -> None:
    """By tests that exist, or by a scenario of `make chaos` that does."""
    proofs = [row[-1] for row in matrix()]
    assert len(proofs) > 30
    for proof in proofs:
        nodes, scenarios = NODE.findall(proof), SCENARIO.findall(proof)
        assert nodes or scenarios, proof
        assert [(path, name) for path, name in nodes if name not in names_in(ROOT / path)] == [], proof
        assert {each.strip() for each in scenarios} <= {each.name for each in SCENARIOS}, proof
