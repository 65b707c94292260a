"""What k8s/README.md says: its commands name what exists, its table is computed, its settings are settings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from service import __version__
from service.config import ENVIRONMENT_PREFIX, Settings
from tests.k8s.rendering import COMBINATIONS, ROOT, of_kind, ray_service, render, worker_group
from tests.k8s.sizing import table

README = ROOT / "k8s" / "README.md"
PROGRAMS = {"curl", "docker", "git", "headcount", "helm", "kind", "kubectl", "minikube"}
FOLDERS = ("k8s/", "deploy/", "docs/", "tests/")
# Made by KubeRay: the service of a RayService is named after it.
RESOURCES = {"rayservice/headcount", "svc/headcount-serve-svc"}
FEATURE_GATE = "GCSFaultToleranceEmbeddedStorage"


def _commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def _faults(text: str) -> Iterator[str]:
    """One sentence for each thing named in the commands and back ticks of a page that is not there."""
    for command in _commands(text):
        if command[0] not in PROGRAMS:
            yield f"{command[0]} is not a program that this page may ask for"
        for flag, argument in pairwise(command):
            yield from _flag_faults(flag, argument)
        for word in command:
            yield from _word_faults(word)
    for word in re.findall(r"`([^`\n]+)`", text):
        if word.startswith(FOLDERS) and not (ROOT / word).exists():
            yield f"there is no {word}"
    for name in re.findall(rf"{ENVIRONMENT_PREFIX}([A-Z_]+)", text):
        if name.lower() not in Settings.model_fields:
            yield f"{name.lower()} is not a setting"


def _flag_faults(flag: str, argument: str) -> Iterator[str]:
    if flag == "-k" and not (ROOT / argument / "kustomization.yaml").exists():
        yield f"there is no overlay {argument}"
    if flag == "-f" and not (ROOT / argument).exists():
        yield f"there is no file {argument}"
    if flag == "-n" and argument != "headcount":
        yield f"{argument} is not our namespace"


def _word_faults(word: str) -> Iterator[str]:
    image, _, tag = word.partition(":")
    if image.endswith("headcount/headcount") and tag != __version__:
        yield f"{word} is not this version"
    if word.startswith(("rayservice/", "svc/")) and word not in RESOURCES:
        yield f"there is no {word}"


def test_the_page_names_what_exists() -> None:
    """Overlays, files, resources, versions, settings."""
    text = README.read_text()
    assert len(_commands(text)) > 15
    assert list(_faults(text)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```sh\nkubectl apply -k k8s/overlays/staging\n```", "no overlay"),
        ("```sh\ndocker build -f Dockerfile -t ghcr.io/headcount/headcount:0.0.9 .\n```", "no file"),
        ("```sh\ndocker build -t ghcr.io/headcount/headcount:0.0.9 .\n```", "not this version"),
        ("```sh\nkubectl -n default get pods\n```", "not our namespace"),
        ("```sh\nkubectl port-forward svc/other 8000\n```", "there is no svc/other"),
        ("```sh\nrm -r x\n```", "not a program"),
        ("Look into `k8s/nowhere.yaml`.", "there is no k8s/nowhere.yaml"),
        ("Set HEADCOUNT_SPEED.", "speed is not a setting"),
    ],
)
def test_what_does_not_exist_is_found(text: str, fault: str) -> None:
    """Each kind of name is looked up."""
    assert any(fault in each for each in _faults(text))


def test_the_table_of_sizes_is_computed() -> None:
    """Row by row: `python -m tests.k8s.regenerate` writes it."""
    assert README.read_text().split("<!-- sizes -->")[1].strip() == table()


def test_the_default_model_fits_its_worker() -> None:
    """The first row is what the manifests ask for."""
    row = next(line for line in table().splitlines() if "(default)" in line)
    limits = worker_group(render("local"))["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert f"| {limits['memory']} |" in row


def test_every_folder_has_its_line() -> None:
    """Overlays and components are in the first table, and each is rendered by a test."""
    text = README.read_text()
    rendered = {folder for folder, _ in COMBINATIONS.values()}
    rendered |= {f"components/{name}" for _, components in COMBINATIONS.values() for name in components}
    for parent in ("overlays", "components"):
        for folder in sorted(path for path in (ROOT / "k8s" / parent).iterdir() if path.is_dir()):
            name = f"{parent}/{folder.name}"
            assert f"| `k8s/{name}/` |" in text, name
            assert name in rendered | {"components/monitoring"}, name


def test_the_patch_of_the_page_is_one() -> None:
    """Its path leads into the head's annotations."""
    (command,) = [each for each in _commands(README.read_text()) if "patch" in each]
    (operation,) = json.loads(command[-1])
    place: object = ray_service(render("production"))
    for name in Path(operation["path"]).parent.parts[1:]:
        assert isinstance(place, dict)
        place = place[name]
    assert isinstance(place, dict)
    assert of_kind(render("production"), "PodDisruptionBudget")


def test_the_feature_gate_is_named_where_it_is_needed() -> None:
    """In the component and on the page, in the same words."""
    component = (ROOT / "k8s/components/head-recovery/kustomization.yaml").read_text()
    assert FEATURE_GATE in component
    assert FEATURE_GATE in README.read_text()
