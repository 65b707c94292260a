"""deploy/compose.yaml, without starting it: locked down, pinned, healthy in order, and every mount is there."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from service import __version__
from service.config import ENVIRONMENT_PREFIX, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
STACK: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OURS = "service"


def faults(stack: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a stack, by service."""
    for name, service in stack["services"].items():
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
            yield f"{name} is not locked down"
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name} may gain privileges"
        if not re.search(r":v?\d+\.\d+\.\d+$", service["image"]):
            yield f"{name} is not pinned"
        if name != OURS and "healthcheck" not in service:
            yield f"{name} has no health check"
        yield from (f"{name} publishes {port}" for port in service["ports"] if not port.startswith("127.0.0.1:"))
        yield from (f"{name} {fault}" for mount in service["volumes"] for fault in faults_of(mount, stack["volumes"]))


def faults_of(mount: str, volumes: Collection[str]) -> Iterator[str]:
    source, _, target = mount.partition(":")
    if not source.startswith("."):
        if source not in volumes:
            yield f"mounts {source}, which is not declared"
        return
    if not (DEPLOY / source).is_dir():
        yield f"mounts {source}, which is not there"
    if not target.endswith(":ro"):
        yield f"may write to {source}"


def test_the_stack_is_sound() -> None:
    """Nothing is wrong with it."""
    assert list(faults(STACK)) == []


@pytest.mark.parametrize(
    ("service", "change", "fault"),
    [
        ("grafana", lambda it: it.update(image="grafana/grafana:latest"), "grafana is not pinned"),
        ("service", lambda it: it.update(ports=["8000:8000"]), "service publishes 8000:8000"),
        ("prometheus", lambda it: it.pop("healthcheck"), "prometheus has no health check"),
        ("prometheus", lambda it: it.pop("read_only"), "prometheus is not locked down"),
        ("grafana", lambda it: it.pop("security_opt"), "grafana may gain privileges"),
        ("grafana", lambda it: it.update(volumes=["./gone:/x:ro"]), "grafana mounts ./gone, which is not there"),
        ("grafana", lambda it: it.update(volumes=["./grafana:/x"]), "grafana may write to ./grafana"),
        ("grafana", lambda it: it.update(volumes=["gone:/x"]), "grafana mounts gone, which is not declared"),
    ],
)
def test_each_fault_would_be_found(service: str, change: Callable[[dict[str, Any]], object], fault: str) -> None:
    """The checks can fail."""
    stack = copy.deepcopy(STACK)
    change(stack["services"][service])
    assert list(faults(stack)) == [fault]


def test_our_service_is_the_image_of_this_version() -> None:
    """Built from the Dockerfile, which brings the health check; its settings exist; it is given time to drain."""
    service = STACK["services"][OURS]
    assert service["image"] == f"headcount:{__version__}"
    build = service["build"]
    dockerfile = (DEPLOY / build["context"] / build["dockerfile"]).read_text()
    assert f" AS {build['target']}\n" in dockerfile
    assert "\nHEALTHCHECK " in dockerfile
    keys = {key.removeprefix(ENVIRONMENT_PREFIX).lower() for key in service["environment"]}
    assert keys <= Settings.model_fields.keys()
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().drain_timeout_s


def mounted(service: str, path: str) -> Path:
    """The file or folder of this repository that `service` sees at `path`."""
    volumes: list[str] = STACK["services"][service]["volumes"]
    mounts = [volume.split(":") for volume in volumes]
    ((source, target),) = ((source, target) for source, target, *_ in mounts if Path(path).is_relative_to(target))
    return DEPLOY / source / Path(path).relative_to(target)


def published(service: str) -> int:
    """The port of a service within the stack."""
    (port,) = STACK["services"][service]["ports"]
    return int(port.split(":")[-1])


def test_prometheus_finds_its_rules_and_our_service() -> None:
    """Its configuration is mounted with the rules beside it, and its target is a service of the stack at its port."""
    (flag,) = (each for each in STACK["services"]["prometheus"]["command"] if each.startswith("--config.file="))
    path = mounted("prometheus", flag.partition("=")[2])
    config = yaml.safe_load(path.read_text())
    assert all((path.parent / rules).exists() for rules in config["rule_files"])
    targets = [
        target for job in config["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    assert targets == [f"{OURS}:{published(OURS)}"]


def test_grafana_finds_prometheus_and_its_dashboards() -> None:
    """The data source is a service of the stack at its port; dashboards are looked for where they are mounted."""
    provisioning = mounted("grafana", "/etc/grafana/provisioning")
    (datasource,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    url = urlsplit(datasource["url"])
    assert (url.hostname, url.port) == ("prometheus", published("prometheus"))
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "headcount.yaml").read_text())["providers"]
    assert list(mounted("grafana", provider["options"]["path"]).glob("*.json"))
    environment = STACK["services"]["grafana"]["environment"]
    assert mounted("grafana", environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).is_file()


def test_the_file_of_keys_is_where_the_setting_says() -> None:
    """With the second file of the stack: a secret, which is not in the repository."""
    stack = yaml.safe_load((DEPLOY / "compose.keys.yaml").read_text())
    assert stack["services"].keys() == {OURS}
    (name,) = stack["services"][OURS]["secrets"]
    assert stack["services"][OURS]["environment"] == {"HEADCOUNT_API_KEYS_FILE": f"/run/secrets/{name}"}
    assert "api_keys_file" in Settings.model_fields
    assert stack["secrets"][name]["file"] in (DEPLOY.parent / ".gitignore").read_text().splitlines()
