"""What we ask of every pod, whatever schemas allow: each policy yields one sentence for each thing that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from service import __version__
from tests.k8s.rendering import Pod, Resource, of_kind, pods

PINNED = re.compile(r"[a-z0-9.-]+/[a-z0-9./-]+:v?\d+\.\d+\.\d+(-[a-z]+)?")
OWN_IMAGE = "ghcr.io/headcount/headcount"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
UNITS = {"Mi": 2**20, "Gi": 2**30}


def number_of_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def number_of_cpus(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def has_pinned_images(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        image = container["image"]
        if not PINNED.fullmatch(image):
            yield f"{image} is not pinned"
        if image.startswith(OWN_IMAGE) and image.partition(":")[2].partition("-")[0] != __version__:
            yield f"{image} is not this version, {__version__}"


def has_bounded_resources(pod: Pod) -> Iterator[str]:
    """Requests and limits, and memory that cannot be taken back from others."""
    for container in pod.containers:
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(kind, {})):
                yield f"{container['name']} has no {kind}"
    in_memory = sum(
        number_of_bytes(volume["emptyDir"]["sizeLimit"])
        for volume in pod.spec.get("volumes", [])
        if volume.get("emptyDir", {}).get("medium") == "Memory"
    )
    if in_memory and in_memory * 2 > number_of_bytes(pod.main[0]["resources"]["limits"]["memory"]):
        yield "volumes in memory take more than half of it"


def has_no_privileges(pod: Pod) -> Iterator[str]:
    security = pod.spec.get("securityContext", {})
    if not security.get("runAsNonRoot") or security.get("runAsUser", 0) == 0:
        yield "it may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "it has no seccomp profile"
    for container in pod.containers:
        own = container.get("securityContext", {})
        if own.get("capabilities") != {"drop": ["ALL"]} or own.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']} keeps privileges"
        if not own.get("readOnlyRootFilesystem"):
            yield f"{container['name']} can write to its root file system"


def has_somewhere_to_write(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        mounts = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
        if container["image"].startswith(OWN_IMAGE) and "/tmp" not in mounts:  # noqa: S108 - in the pod
            yield f"{container['name']} has no /tmp"


def has_no_token(pod: Pod) -> Iterator[str]:
    """But for the gateway's picker, whose work is to watch pods."""
    if pod.spec.get("automountServiceAccountToken") is not False and "picker" not in pod.owner:
        yield "it gets a token of the API server"
    if not pod.spec.get("serviceAccountName", "").startswith("headcount-"):
        yield "it has no account of its own"


def has_no_service_links(pod: Pod) -> Iterator[str]:
    """Kubernetes would set `HEADCOUNT_SERVICE_HOST` and the like, which are no settings of ours."""
    if pod.spec.get("enableServiceLinks") is not False:
        yield "it gets a variable for each service"


def has_probes(pod: Pod) -> Iterator[str]:
    for container in pod.main:
        names = {port["name"] for port in container["ports"]}
        for probe in PROBES:
            if probe not in container:
                yield f"{container['name']} has no {probe}"
            port = container.get(probe, {}).get("httpGet", {}).get("port", 0)
            if isinstance(port, str) and port not in names:
                yield f"{container['name']} has no port {port}"


def has_rank(pod: Pod) -> Iterator[str]:
    if pod.spec.get("priorityClassName") != "headcount-serving":
        yield "it has no priority"


POLICIES: tuple[Callable[[Pod], Iterator[str]], ...] = (
    has_pinned_images,
    has_bounded_resources,
    has_no_privileges,
    has_somewhere_to_write,
    has_no_token,
    has_no_service_links,
    has_probes,
    has_rank,
)


def dangling_selectors(resources: Sequence[Resource]) -> Iterator[str]:
    """Whatever selects pods of ours finds one, and the port that it names."""
    present = list(pods(resources))
    for resource in of_kind(
        resources, "NetworkPolicy", "PodDisruptionBudget", "Service", "PodMonitor", "InferencePool", "Deployment"
    ):
        spec, name = resource["spec"], f"{resource['kind']} {resource['metadata']['name']}"
        selector = spec.get("podSelector", spec.get("selector"))
        wanted = selector.get("matchLabels", {}) if resource["kind"] != "Service" else selector
        found = [pod for pod in present if wanted.items() <= pod.labels.items()]
        if not found:
            yield f"{name} selects nothing"
        ports = {port["name"] for pod in found for container in pod.main for port in container["ports"]}
        asked = {each["port"] for each in spec.get("podMetricsEndpoints", [])}
        asked |= {each["targetPort"] for each in spec.get("ports", [])}
        yield from (f"{name} asks for port {port}" for port in sorted(asked - ports))


def dangling_names(resources: Sequence[Resource]) -> Iterator[str]:
    """What a pod refers to is there; Kubernetes itself puts kube-root-ca.crt into every namespace."""
    present = {(each["kind"], each["metadata"]["name"]) for each in resources} | {("ConfigMap", "kube-root-ca.crt")}
    for pod in pods(resources):
        wanted = {("ServiceAccount", pod.spec["serviceAccountName"]), ("PriorityClass", pod.spec["priorityClassName"])}
        for container in pod.containers:
            wanted |= {("ConfigMap", each["configMapRef"]["name"]) for each in container.get("envFrom", [])}
        for volume in pod.spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                wanted.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
            sources = [volume, *volume.get("projected", {}).get("sources", [])]
            wanted |= {("ConfigMap", each["configMap"]["name"]) for each in sources if "configMap" in each}
        yield from (f"{pod.owner} refers to {kind} {name}" for kind, name in sorted(wanted - present))
