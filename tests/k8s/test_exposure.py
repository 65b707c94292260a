"""Who reaches what in the cluster: clients the service's port, Ray its own, nobody else anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from tests.k8s.rendering import COMBINATIONS, RAY_SERVICES, Resource, environment, of_kind, pods, ray_service, render

OURS = {"app.kubernetes.io/part-of": "headcount"}
PICKER = {"app.kubernetes.io/part-of": "headcount-gateway"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
# The service, the metrics of replicas and of Ray, the gateway's picker, and a replica's own server, which asks for keys
# as any other.
OPEN = {8000, 8080, 9464, 9002, 30000}
DASHBOARD = 8265  # where whoever has the cluster's token can run code


def exposures(resources: list[Resource]) -> Iterator[str]:
    """One sentence for each way in that should not be."""
    for service in of_kind(resources, "Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{service['metadata']['name']} can be reached from outside"
    for pod in pods(resources):
        if any(pod.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{pod.owner} is on the host's network"
        for container in pod.containers:
            if any("hostPort" in port for port in container.get("ports", [])):
                yield f"{pod.owner} takes a port of its host"
    policies = of_kind(resources, "NetworkPolicy")
    if not any(each["spec"]["podSelector"] == {} and "Ingress" in each["spec"]["policyTypes"] for each in policies):
        yield "what is not allowed is not denied"
    for policy in policies:
        for rule in policy["spec"].get("ingress", []):
            yield from (f"{policy['metadata']['name']} {fault}" for fault in _too_open(rule))


def _too_open(rule: dict[str, Any]) -> Iterator[str]:
    peers = [peer.get("podSelector", {}).get("matchLabels") for peer in rule.get("from", [{}])]
    if peers in ([OURS], [PICKER]):
        return
    allowed = OPEN | ({DASHBOARD} if peers == [OPERATOR] else set())
    opened = {each.get("port") for each in rule.get("ports", [{}])}
    yield from (f"opens {'every port' if port is None else port}" for port in opened - allowed)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_rays_own_ports_are_rays_own(combination: str) -> None:
    """Nothing is published outside the cluster, and inside only what is meant for others."""
    assert list(exposures(render(combination))) == []


@pytest.mark.parametrize("combination", RAY_SERVICES)
def test_whoever_reaches_ray_needs_its_token(combination: str) -> None:
    """A network policy that is not enforced is not the last line."""
    cluster = ray_service(render(combination))["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert "serviceType" not in cluster["headGroupSpec"]


@pytest.mark.parametrize(
    ("kind", "path", "value", "fault"),
    [
        ("Service", ("type",), "NodePort", "from outside"),
        ("Deployment", ("template", "spec", "hostNetwork"), True, "host's network"),
        ("NetworkPolicy", ("ingress",), [{"ports": [{"port": 6379}]}], "opens 6379"),
        ("NetworkPolicy", ("ingress",), [{"from": [{"namespaceSelector": {}}]}], "opens every port"),
        ("NetworkPolicy", ("ingress",), [{"ports": [{"port": DASHBOARD}]}], f"opens {DASHBOARD}"),
    ],
)
def test_what_is_open_is_found(kind: str, path: tuple[str, ...], value: object, fault: str) -> None:
    """Each check can fail."""
    resources = render("production, gateway")
    place = of_kind(resources, kind)[0]["spec"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert any(fault in each for each in exposures(resources))


@pytest.mark.parametrize("combination", ["production, api-keys", "keda, api-keys"])
def test_the_file_of_keys_is_where_the_setting_says(combination: str) -> None:
    """In every pod of ours, from a Secret, for reading, by our group alone."""
    resources = render(combination)
    path = PurePosixPath(environment(resources)["HEADCOUNT_API_KEYS_FILE"])
    ours = [pod for pod in pods(resources) if OURS.items() <= pod.labels.items()]
    assert ours
    for pod in ours:
        (mount,) = [each for each in pod.main[0]["volumeMounts"] if each["mountPath"] == str(path.parent)]
        (volume,) = [each for each in pod.spec["volumes"] if each["name"] == mount["name"]]
        assert mount["readOnly"]
        assert volume["secret"] == {"secretName": "headcount-api-keys", "defaultMode": 0o440}


@pytest.mark.parametrize("combination", ["production, api-keys", "keda, api-keys"])
def test_prometheus_brings_a_key_where_one_is_asked_for(combination: str) -> None:
    """At the service's port; the ports for metrics alone are closed to clients by the network's policies."""
    for monitor in of_kind(render(combination), "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            credentials = endpoint.get("authorization", {}).get("credentials")
            expected = {"name": "headcount-metrics-key", "key": "key"} if endpoint["port"] == "serve" else None
            assert credentials == expected
