"""Our own policies hold for every pod of every combination, and each can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.k8s.policies import (
    POLICIES,
    dangling_names,
    dangling_selectors,
    has_bounded_resources,
    has_no_privileges,
    has_no_service_links,
    has_no_token,
    has_pinned_images,
    has_probes,
    has_rank,
    has_somewhere_to_write,
    number_of_bytes,
    number_of_cpus,
)
from tests.k8s.rendering import COMBINATIONS, Pod, Resource, of_kind, pods, ray_service, render, worker_group

MAX_UPGRADE_PODS = 2  # fleets side by side


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_pod_keeps_the_policies(combination: str) -> None:
    """Pinned, bounded, unprivileged, probed, without a token."""
    found = [
        f"{pod.owner}: {fault}" for pod in pods(render(combination)) for policy in POLICIES for fault in policy(pod)
    ]
    assert found == []


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_nothing_dangles(combination: str) -> None:
    """Selectors select, named ports exist, references refer."""
    resources = render(combination)
    assert [*dangling_selectors(resources), *dangling_names(resources)] == []


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_everything_lives_in_one_namespace(combination: str) -> None:
    """But for what has none."""
    without = {"Namespace", "PriorityClass"}
    for resource in render(combination):
        expected = None if resource["kind"] in without else "headcount"
        assert resource["metadata"].get("namespace") == expected, resource["metadata"]


def _of_container(name: str, value: object) -> Callable[[Pod], None]:
    def change(pod: Pod) -> None:
        if value is None:
            pod.main[0].pop(name)
        else:
            pod.main[0][name] = value

    return change


def _of_spec(name: str, value: object) -> Callable[[Pod], None]:
    def change(pod: Pod) -> None:
        pod.spec[name] = value

    return change


@pytest.mark.parametrize(
    ("policy", "change", "fault"),
    [
        (has_pinned_images, _of_container("image", "ghcr.io/headcount/headcount:latest"), "not pinned"),
        (has_pinned_images, _of_container("image", "ghcr.io/headcount/headcount"), "not pinned"),
        (has_pinned_images, _of_container("image", "ghcr.io/headcount/headcount:9.9.9"), "not this version"),
        (has_bounded_resources, _of_container("resources", {"limits": {"cpu": "1", "memory": "4Gi"}}), "no requests"),
        (has_no_privileges, _of_spec("securityContext", {"runAsUser": 0}), "root"),
        (has_no_privileges, _of_spec("securityContext", {}), "seccomp"),
        (has_no_privileges, _of_container("securityContext", {"capabilities": {"drop": ["ALL"]}}), "keeps privileges"),
        (has_no_privileges, _of_container("securityContext", {}), "can write"),
        (has_somewhere_to_write, _of_container("volumeMounts", []), "no /tmp"),
        (has_no_token, _of_spec("automountServiceAccountToken", True), "token"),
        (has_no_token, _of_spec("serviceAccountName", "default"), "account of its own"),
        (has_no_service_links, _of_spec("enableServiceLinks", True), "a variable for each service"),
        (has_probes, _of_container("livenessProbe", None), "no livenessProbe"),
        (has_probes, _of_container("readinessProbe", {"httpGet": {"port": "http"}}), "no port http"),
        (has_rank, _of_spec("priorityClassName", "other"), "priority"),
    ],
)
def test_a_pod_that_breaks_a_policy_is_found(
    policy: Callable[[Pod], Iterator[str]], change: Callable[[Pod], None], fault: str
) -> None:
    """Each policy can fail."""
    head = next(pods(render("local")))
    change(head)
    assert any(fault in each for each in policy(head))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("PodDisruptionBudget", ("selector", "matchLabels")),
        ("NetworkPolicy", ("podSelector", "matchLabels")),
        ("PodMonitor", ("selector", "matchLabels")),
    ],
)
def test_a_selector_that_finds_nothing_is_found(kind: str, path: tuple[str, ...]) -> None:
    """So is a port that no pod has."""
    resources = render("production")
    changed = next(each for each in of_kind(resources, kind) if each["spec"].get(path[0]))
    place: Any = changed["spec"][path[0]]
    place[path[1]] = {"app": "other"}
    assert any(changed["metadata"]["name"] in each for each in dangling_selectors(resources))


def test_a_reference_to_nothing_is_found() -> None:
    """A ConfigMap whose name kustomize changed, and the RayService did not follow."""
    resources = [each for each in render("local") if each["kind"] != "ConfigMap"]
    assert any("headcount-environment" in each for each in dangling_names(resources))


@pytest.mark.parametrize("combination", ["production", "scale-to-zero", "production, gpu, model-volume", "keda"])
def test_the_quota_has_room_for_an_upgrade(combination: str) -> None:
    """Two fleets of the largest size, side by side; of KEDA's pods, one more than the most."""
    resources = render(combination)
    (quota,) = of_kind(resources, "ResourceQuota")
    hard = quota["spec"]["hard"]
    num_pods, cpus, memory = _largest(resources)
    assert num_pods <= int(hard["pods"])
    assert cpus <= number_of_cpus(hard["requests.cpu"])
    assert memory <= number_of_bytes(hard["requests.memory"])
    assert (hard["requests.cpu"], hard["requests.memory"]) == (hard["limits.cpu"], hard["limits.memory"])


def _largest(resources: list[Resource]) -> tuple[int, float, int]:
    """Pods, CPUs and bytes while an upgrade runs."""
    if scaled := of_kind(resources, "ScaledObject"):
        (pod,) = pods(resources)
        cpus, memory = _requests(pod)
        number = scaled[0]["spec"]["maxReplicaCount"] + 1
        return number, number * cpus, number * memory
    head, worker = pods(resources)
    autoscaler = ray_service(resources)["spec"]["rayClusterConfig"]["autoscalerOptions"]["resources"]["requests"]
    number = worker_group(resources)["maxReplicas"]
    (head_cpus, head_memory), (cpus, memory) = _requests(head), _requests(worker)
    return (
        MAX_UPGRADE_PODS * (1 + number),
        MAX_UPGRADE_PODS * (head_cpus + number_of_cpus(autoscaler["cpu"]) + number * cpus),
        MAX_UPGRADE_PODS * (head_memory + number_of_bytes(autoscaler["memory"]) + number * memory),
    )


def _requests(pod: Pod) -> tuple[float, int]:
    requests = [container["resources"]["requests"] for container in pod.main]
    return sum(number_of_cpus(each["cpu"]) for each in requests), sum(
        number_of_bytes(each["memory"]) for each in requests
    )
