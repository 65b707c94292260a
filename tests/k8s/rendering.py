"""What kustomize makes of k8s/: overlays alone and with components, and the pods that are in it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
Resource = dict[str, Any]

COMBINATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "local": ("overlays/local", ()),
    "production": ("overlays/production", ()),
    "scale-to-zero": ("overlays/scale-to-zero", ()),
    "local, monitoring": ("overlays/local", ("monitoring",)),
    "production, gpu, model-volume": ("overlays/production", ("gpu", "model-volume")),
    "production, head-recovery": ("overlays/production", ("head-recovery",)),
    "production, gateway": ("overlays/production", ("gateway",)),
    "production, api-keys": ("overlays/production", ("api-keys",)),
    "keda": ("base", ("monitoring", "keda")),
    "keda, api-keys": ("base", ("monitoring", "keda", "api-keys")),
}
RAY_SERVICES = tuple(name for name in COMBINATIONS if not name.startswith("keda"))


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod template and who owns it; `containers` are all of them, `main` those that run for good."""

    owner: str
    template: Resource

    @property
    def spec(self) -> Resource:
        spec: Resource = self.template["spec"]
        return spec

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    @property
    def main(self) -> list[Resource]:
        containers: list[Resource] = self.spec["containers"]
        return containers

    @property
    def containers(self) -> list[Resource]:
        return self.main + list(self.spec.get("initContainers", []))


def render(combination: str) -> list[Resource]:
    """A copy that the caller may change. Skips the test where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: it renders the manifests")
    folder, components = COMBINATIONS[combination]
    return list(yaml.safe_load_all(_rendered(folder, components)))


@functools.cache
def _rendered(folder: str, components: Sequence[str]) -> str:
    with tempfile.TemporaryDirectory() as directory:
        kustomization = {
            "resources": [os.path.relpath(ROOT / "k8s" / folder, directory)],
            "components": [os.path.relpath(ROOT / "k8s" / "components" / name, directory) for name in components],
        }
        (Path(directory) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        command = ["kubectl", "kustomize", directory]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_kind(resources: Sequence[Resource], *kinds: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] in kinds]


def ray_service(resources: Sequence[Resource]) -> Resource:
    (found,) = of_kind(resources, "RayService")
    return found


def worker_group(resources: Sequence[Resource]) -> Resource:
    (found,) = ray_service(resources)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    group: Resource = found
    return group


def pods(resources: Sequence[Resource]) -> Iterator[Pod]:
    for resource in resources:
        name = f"{resource['kind']} {resource['metadata']['name']}"
        if resource["kind"] == "RayService":
            cluster = resource["spec"]["rayClusterConfig"]
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                yield Pod(f"{name}, {group.get('groupName', 'head')}", group["template"])
        elif resource["kind"] == "Deployment":
            yield Pod(name, resource["spec"]["template"])


def environment(resources: Sequence[Resource]) -> dict[str, str]:
    """The variables that all of our pods get."""
    (found,) = [each for each in of_kind(resources, "ConfigMap") if "environment" in each["metadata"]["name"]]
    data: dict[str, str] = found["data"]
    return data
