"""The house rules that can be counted: sizes of files, functions and classes; one clock; no work for `utils`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("service", "loadtest") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_CLASS_LINES = 200

# path::name -> why it may be longer
EXCEPTIONS = {
    "service/autoscaling/simulator/replica.py::SimulatedReplica": "one engine's whole arithmetic, proven equal to it",
}


def _names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Lines without the docstring."""
    assert node.end_lineno is not None
    first = node.body[0]
    docstring = 0
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        assert first.end_lineno is not None
        docstring = first.end_lineno - first.lineno + 1
    return node.end_lineno - node.lineno + 1 - docstring


def _too_long(path: Path) -> Iterator[str]:
    text = path.read_text()
    if len(text.splitlines()) > MAX_FILE_LINES:
        yield f"{_names(path)}: {len(text.splitlines())} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _length(node) > MAX_FUNCTION_LINES:
            yield f"{_names(path)}::{node.name}: {_length(node)} lines"
        if isinstance(node, ast.ClassDef) and _length(node) > MAX_CLASS_LINES:
            yield f"{_names(path)}::{node.name}: {_length(node)} lines"


@pytest.mark.parametrize("paths", [SOURCES, TESTS], ids=["source", "tests"])
def test_nothing_is_too_long(paths: list[Path]) -> None:
    """A file fits in the head, a function on the screen."""
    found = [entry for path in paths for entry in _too_long(path) if entry.split(": ")[0] not in EXCEPTIONS]
    assert found == []


def test_no_drawer_for_everything() -> None:
    """A module is named for what it does."""
    assert [_names(path) for path in SOURCES if path.stem in {"utils", "util", "common", "helpers", "misc"}] == []


def test_a_request_can_be_followed_in_an_afternoon() -> None:
    """From HTTP to token and back in under 2,000 lines: the files of docs/architecture.md's path."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    path = page.split("<!-- path -->")[1]
    files = [ROOT / word.strip("`") for word in path.split() if word.startswith("`service/") and word.endswith(".py`")]
    assert len(files) > 10
    assert sum(len(file.read_text().splitlines()) for file in files) < 2000


def test_documents_name_files_that_exist() -> None:
    """Every path in back ticks that starts with one of our folders is there."""
    missing = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *sorted((ROOT / "docs").rglob("*.md"))]:
        for word in page.read_text().replace("\n", " ").split("`")[1::2]:
            if word.startswith(("service/", "loadtest/", "tests/", "docs/", "deploy/", "k8s/")) and " " not in word:
                name = word.rstrip("/").split("::")[0].split("#")[0]
                if "*" not in name and "<" not in name and "{" not in name and not (ROOT / name).exists():
                    missing.append(f"{_names(page)}: {word}")
    assert missing == []


def test_the_architecture_page_stays_one_page() -> None:
    """At most sixty lines."""
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 60
