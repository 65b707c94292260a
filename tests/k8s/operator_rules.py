"""What KubeRay's operator refuses although the schema allows it: its own validation, said again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.k8s.rendering import Resource

MAX_NAME_LENGTH = 47
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
UPGRADE_TYPES = ("None", "NewCluster", "NewClusterWithIncrementalUpgrade")
TOKEN_VERSION = (2, 52)


def broken_rules(service: Resource) -> Iterator[str]:
    """One sentence for each rule that a RayService breaks."""
    name, spec = service["metadata"]["name"], service["spec"]
    if len(name) > MAX_NAME_LENGTH or not DNS_1035.fullmatch(name):
        yield f"the name {name!r} is too long or no DNS label"
    if spec.get("upgradeStrategy", {}).get("type", "NewCluster") not in UPGRADE_TYPES:
        yield "the type of upgrade is not known"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "the deletion delay is negative"
    cluster = spec["rayClusterConfig"]
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "the head's service must not be named"
    yield from _cluster_rules(cluster)
    yield from _group_rules("head", cluster["headGroupSpec"])
    for group in cluster["workerGroupSpecs"]:
        yield from _group_rules(group["groupName"], group)
        yield from _bound_rules(group, is_autoscaled=cluster.get("enableInTreeAutoscaling", False))


def _variables(group: Mapping[str, Any]) -> set[str]:
    return {each["name"] for each in group["template"]["spec"]["containers"][0].get("env", [])}


def _cluster_rules(cluster: Mapping[str, Any]) -> Iterator[str]:
    groups = (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    variables, options = _variables(groups[0]), cluster.get("autoscalerOptions", {})
    if "RAY_enable_autoscaler_v2" in variables and not cluster.get("enableInTreeAutoscaling"):
        yield "autoscaler v2 is asked for, and there is no autoscaler"
    if "RAY_enable_autoscaler_v2" in variables and "version" in options:
        yield "the autoscaler's version is said twice"
    restarts = {group["template"]["spec"].get("restartPolicy", "Never") for group in groups}
    if options.get("version") == "v2" and restarts != {"Never"}:
        yield "autoscaler v2 wants pods that are not restarted"
    version = tuple(int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2])
    if cluster.get("authOptions", {}).get("mode") == "token" and version < TOKEN_VERSION:
        yield "token authentication needs rayVersion 2.52 or later"
    if "gcsFaultToleranceOptions" not in cluster and "RAY_REDIS_ADDRESS" in variables:
        yield "Redis is named, and fault tolerance is off"
    if "gcsFaultToleranceOptions" in cluster and variables & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS"}:
        yield "Redis is set up twice"


def _group_rules(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    if not group["template"]["spec"].get("containers"):
        yield f"{name} has no container"
    parameters = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
        yield f"{name} says its resources twice"
    if "labels" in parameters:
        yield f"{name} has labels among rayStartParams"


def _bound_rules(group: Mapping[str, Any], *, is_autoscaled: bool) -> Iterator[str]:
    bounds = group.get("minReplicas"), group.get("maxReplicas")
    if None in bounds and not is_autoscaled:
        yield f"{group['groupName']} has no bounds"
    low, high = bounds[0] or 0, bounds[1] if bounds[1] is not None else group.get("replicas", 0)
    if not 0 <= low <= high or group.get("replicas", 0) < 0:
        yield f"{group['groupName']} has bounds that no number is in"
    if group.get("suspend"):
        yield f"{group['groupName']} is suspended"
