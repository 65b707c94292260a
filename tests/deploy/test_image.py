"""deploy/Dockerfile, without building it: what it names exists, and what it repeats of the code is equal to it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from service import __version__
from service.cli import SPIN_COUNT, SPIN_VARIABLE, main
from service.config import ENVIRONMENT_PREFIX, Settings
from service.fleet.environment import ray_environment
from service.model.hub import DEFAULT_MODEL

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = TOML["project"]
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN"}
INSTRUCTIONS |= {"STOPSIGNAL", "USER", "WORKDIR"}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of the Dockerfile, its continuations joined, in the stage that it belongs to."""

    stage: str
    word: str
    rest: str


def parse(text: str) -> list[Instruction]:
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    found, stage = [], ""
    for line in filter(None, joined.splitlines()):
        word, _, rest = line.partition(" ")
        assert word in INSTRUCTIONS, line
        stage = rest.split()[-1] if word == "FROM" else stage
        found.append(Instruction(stage, word, rest.strip()))
    return found


def instructions(word: str, *stages: str) -> list[str]:
    """What follows `word`, in these stages or in all."""
    found = [each for each in parse(DOCKERFILE.read_text()) if each.word == word]
    return [each.rest for each in found if not stages or each.stage in stages]


def pairs(word: str, *stages: str) -> dict[str, str]:
    """ENV, ARG or LABEL as a dictionary; an ARG without a default is empty."""
    entries = [entry.partition("=") for rest in instructions(word, *stages) for entry in shlex.split(rest)]
    return {name: value for name, _, value in entries}


def test_the_last_stage_is_the_one_for_processors() -> None:
    """A build without a target makes the CPU image; the other target is named."""
    stages = [rest.split()[-1] for rest in instructions("FROM")]
    assert stages[-1] == "cpu"
    assert "gpu" in stages


def test_every_base_is_a_pinned_image_or_a_stage_before() -> None:
    """No `latest`; the digest is an argument, so that a release can be reproduced to the byte."""
    known: set[str] = set()
    for rest in instructions("FROM"):
        base, _, stage = rest.partition(" AS ")
        if base not in known:
            assert re.fullmatch(r"docker\.io/[\w/]+:\d+\.\d+-[\w-]+\$\{PYTHON_DIGEST:\+@\$\{PYTHON_DIGEST\}\}", base), (
                base
            )
        known.add(stage)
    assert "PYTHON_DIGEST" in pairs("ARG", "")


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_it_runs_as_an_ordinary_user(stage: str) -> None:
    """By number, so that Kubernetes' runAsNonRoot can tell; nothing is changed afterwards."""
    last = [each for each in parse(DOCKERFILE.read_text()) if each.stage == stage][-1]
    assert (last.word, last.rest) == ("USER", "1000:1000")
    assert "useradd --uid 1000" in " ".join(instructions("RUN", "runtime"))


def test_what_is_copied_is_there_and_let_through() -> None:
    """Each source is in the repository and in the list of what a build may see; nothing else is."""
    ignore = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    seen = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {source for rest in instructions("COPY") if not rest.startswith("--from") for source in rest.split()[:-1]}
    assert "*" in ignore
    assert copied == seen
    assert not [source for source in copied if not (ROOT / source).exists()]


def test_stages_copy_from_stages() -> None:
    """Each `--from` is a stage."""
    stages = {rest.split()[-1] for rest in instructions("FROM")}
    froms = {match for rest in instructions("COPY") for match in re.findall(r"--from=(\S+)", rest)}
    assert froms <= stages
    assert froms


@pytest.mark.parametrize("data_plane", ["haproxy", "serve"])
def test_the_variables_of_ray_are_those_that_serve_sets(data_plane: str, tmp_path: Path) -> None:
    """Whichever data plane is chosen later: only what holds for all is in the image."""
    expected = ray_environment(Settings.model_validate({"data_plane": data_plane}), tmp_path)
    image = {name: value for name, value in pairs("ENV", "runtime", "cpu", "gpu").items() if name.startswith("RAY_")}
    assert image.items() <= expected.items()
    assert image


def test_the_settings_are_settings() -> None:
    """Every HEADCOUNT_* variable is one, the model is the one that is baked in, and idle threads sleep."""
    image = pairs("ENV", "runtime", "cpu", "gpu")
    settings = {name for name in image if name.startswith(ENVIRONMENT_PREFIX)}
    assert {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in settings} <= Settings.model_fields.keys()
    assert image[SPIN_VARIABLE] == SPIN_COUNT
    assert image["HEADCOUNT_MODEL"] == f"${{MODEL:-{DEFAULT_MODEL}}}"
    assert {pairs("ARG", stage)["MODEL"] for stage in ("model", "runtime")} == {DEFAULT_MODEL}
    assert image["HEADCOUNT_CACHE_DIR"] == pairs("ENV", "model")["HEADCOUNT_CACHE_DIR"]
    assert image["HOME"] == "/tmp"  # noqa: S108 - what is writable there


def test_the_command_is_ours() -> None:
    """What the image runs, and what its build runs, are commands of `headcount`."""
    (entry,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert json.loads(entry)[0] in PROJECT["scripts"]
    assert json.loads(command)[0] in main.commands
    assert "prepare" in main.commands["model"].commands  # type: ignore[attr-defined]
    assert "headcount model prepare --portable" in " ".join(instructions("RUN", "model"))


def test_versions_are_the_projects() -> None:
    """The label is this version; PyTorch is the Makefile's, within what the project asks for."""
    assert pairs("ARG", "runtime")["VERSION"] == __version__
    versions = {pairs("ARG", stage)["TORCH_VERSION"] for stage in ("build-cpu", "build-gpu")}
    (torch,) = versions
    assert f"TORCH := {torch}\n" in (ROOT / "Makefile").read_text()
    wanted = next(Requirement(each) for each in PROJECT["dependencies"] if each.startswith("torch"))
    assert torch in wanted.specifier


def test_every_dependency_is_pinned() -> None:
    """To a version that the project accepts; but for torch, whose build is chosen in the Dockerfile."""
    lines = (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    wanted = [Requirement(each) for each in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["otel"])]
    missing = [
        str(each)
        for each in wanted
        if each.name != "torch" and (each.name not in pinned or pinned[each.name] not in each.specifier)
    ]
    assert missing == []
    assert "torch" not in pinned


@pytest.mark.parametrize("package", ["service", "loadtest"])
def test_what_the_code_reads_is_installed_with_it(package: str) -> None:
    """An image holds the wheel, not the repository: files that are no code must be named to get into it."""
    data = {path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    page = ROOT / "service" / "web"
    data -= {path for path in data if path.is_relative_to(page) and not path.is_relative_to(page / "dist")}
    patterns = TOML["tool"]["setuptools"]["package-data"][package]
    installed = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    assert data - installed == set()


def test_nothing_secret_is_asked_for() -> None:
    """What is an argument or a variable can be read from the image."""
    names = {*pairs("ARG"), *pairs("ENV")}
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|KEY", name)]


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server that answers every GET with `status`; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class has it
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_whether_it_is_ready(status: int, is_healthy: bool) -> None:
    """The command itself, against a server on another port than the usual one."""
    (check,) = instructions("HEALTHCHECK")
    program, *arguments = json.loads(check.partition("CMD ")[2])
    with answering(status) as port:
        result = subprocess.run(
            [sys.executable, *arguments], check=False, capture_output=True, env={"HEADCOUNT_PORT": str(port)}
        )
    assert program == "python"
    assert (result.returncode == 0) is is_healthy
