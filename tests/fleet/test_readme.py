"""What the README says works."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.server_process import ServerProcess

README = (Path(__file__).parents[2] / "README.md").read_text()
BASE_URL = "http://127.0.0.1:8000"
ANSWER = "The capital of France is Paris."


def blocks(language: str) -> list[str]:
    return [part.split("```")[0] for part in README.split(f"```{language}\n")[1:]]


@pytest.mark.cluster
def test_the_curl_example_streams_an_answer(server: ServerProcess) -> None:
    """The first request of the README, as it is printed there."""
    (command,) = [block for block in blocks("sh") if block.startswith("curl")]
    arguments = shlex.split(command.replace(BASE_URL, server.url).replace("\\\n", " "))
    answer = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert answer.startswith("data: {")
    assert answer.endswith("data: [DONE]\n\n")


@pytest.mark.cluster
@pytest.mark.parametrize(("package", "expected"), [("openai", ANSWER), ("langchain_openai", ANSWER), ("anthropic", "")])
def test_the_python_examples_print_the_answer(server: ServerProcess, package: str, expected: str) -> None:
    """The examples of the README, as they are printed there; Anthropic's client draws at random, and says something."""
    (program,) = [block for block in blocks("python") if block.startswith(f"from {package} ")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program.replace(BASE_URL, server.url), {})  # noqa: S102 - our own README
    assert printed.getvalue().startswith(expected)
    assert printed.getvalue().strip()


@pytest.mark.cluster
def test_the_llm_example_prints_the_answer(server: ServerProcess, tmp_path: Path) -> None:
    """The commands for `llm`, as they are printed in the README, with a configuration of their own."""
    (script,) = [block for block in blocks("sh") if "llm -m" in block]
    environment = {
        **os.environ,
        "LLM_USER_PATH": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["bash", "-ec", script.replace(BASE_URL, server.url)]
    answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert answer.strip() == ANSWER


def test_make_targets_exist() -> None:
    """Every `make` target that the README or CONTRIBUTING names is in the Makefile."""
    root = Path(__file__).parents[2]
    targets = {line.split(":")[0] for line in (root / "Makefile").read_text().splitlines() if ":" in line}
    quoted = (README + (root / "CONTRIBUTING.md").read_text()).replace("\n", "`").split("`")
    named = {words.split()[1] for words in quoted if words.startswith("make ")}
    assert {"serve", "test"} <= named
    assert named <= targets
