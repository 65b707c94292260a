"""Every rendered resource is one that an API server takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from tests.k8s.crd_schema import faults, load_schemas
from tests.k8s.operator_rules import broken_rules
from tests.k8s.rendering import COMBINATIONS, RAY_SERVICES, Resource, pods, ray_service, render

KUBERNETES = "1.36.0"
# Not among the definitions that the tests are given: their own projects' validation is not repeated here.
UNCHECKED = {"InferencePool", "HTTPRoute"}


def _is_custom(resource: Resource) -> bool:
    group = resource["apiVersion"].rpartition("/")[0]
    return "." in group and not group.endswith("k8s.io")


@pytest.fixture(scope="module")
def everything() -> list[Resource]:
    """All resources of all combinations, each once."""
    found = {json.dumps(each, sort_keys=True): each for name in COMBINATIONS for each in render(name)}
    return list(found.values())


def _core(resources: list[Resource]) -> Iterator[Resource]:
    for resource in resources:
        if not _is_custom(resource) and resource["kind"] not in UNCHECKED:
            yield resource
    for pod in pods(resources):
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod.spec}


def test_core_kinds_fit_their_schemas(everything: list[Resource]) -> None:
    """Deployments, policies, and the pods inside a RayService too, with no field that Kubernetes does not know."""
    checked = {json.dumps(each, sort_keys=True): each for each in _core(everything)}
    assert len(checked) > 20
    for resource in checked.values():
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def test_an_unknown_field_of_a_core_kind_is_found() -> None:
    """The validator is strict."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": 80}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(service, KUBERNETES, strict=True)


def test_custom_kinds_fit_their_schemas(everything: list[Resource]) -> None:
    """RayService, ScaledObject, PodMonitor and PrometheusRule fit what their operators install."""
    schemas = load_schemas()
    kinds = set()
    for resource in filter(_is_custom, everything):
        kinds.add(resource["kind"])
        assert list(faults(schemas[resource["apiVersion"], resource["kind"]], resource)) == []
    assert kinds == {"RayService", "ScaledObject", "PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (("upgradeStrategi",), {}, ".spec.upgradeStrategi: is not known"),
        (("rayClusterDeletionDelaySeconds",), "660", "is not of type integer"),
        (("rayClusterConfig", "enableInTreeAutoscaling"), 1, "is not of type boolean"),
        (("rayClusterConfig", "autoscalerOptions", "version"), "v3", "'v3' is none of ['v1', 'v2']"),
        (("rayClusterConfig", "headGroupSpec"), {}, ".template: is missing"),
        (("rayClusterConfig", "workerGroupSpecs"), [{"groupName": 1}], "workerGroupSpecs[0].groupName: 1 is not"),
    ],
)
def test_a_fault_in_a_custom_kind_is_found(path: tuple[str, ...], value: object, fault: str) -> None:
    """An unknown field, a wrong type, a value outside the enumeration, a missing field."""
    service = render("local")
    place: Any = ray_service(service)["spec"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    found = list(faults(load_schemas()["ray.io/v1", "RayService"], ray_service(service)))
    assert any(fault in each for each in found), found


@pytest.mark.parametrize("combination", RAY_SERVICES)
def test_the_operator_would_take_it(combination: str) -> None:
    """None of KubeRay's own rules is broken."""
    assert list(broken_rules(ray_service(render(combination)))) == []


HEAD_CONTAINER = "headGroupSpec.template.spec.containers.0"


def test_redis_that_is_set_up_twice_is_found() -> None:
    """By the head's own variables, beside the operator's options."""
    service = ray_service(render("production, head-recovery"))
    container = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "REDIS_PASSWORD"}]
    assert any("set up twice" in each for each in broken_rules(service))


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("metadata.name", "h" * 48, "too long"),
        ("metadata.name", "1st", "no DNS label"),
        ("spec.upgradeStrategy.type", "Recreate", "type of upgrade"),
        ("spec.rayClusterDeletionDelaySeconds", -1, "negative"),
        ("spec.rayClusterConfig.headGroupSpec.headService", {"metadata": {"name": "x"}}, "must not be named"),
        ("spec.rayClusterConfig.rayVersion", "2.51.0", "token authentication"),
        (f"spec.rayClusterConfig.{HEAD_CONTAINER}.env", [{"name": "RAY_enable_autoscaler_v2"}], "said twice"),
        (f"spec.rayClusterConfig.{HEAD_CONTAINER}.env", [{"name": "RAY_REDIS_ADDRESS"}], "fault tolerance is off"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.restartPolicy", "OnFailure", "not restarted"),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.restartPolicy", "Always", "not restarted"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers", [], "no container"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.rayStartParams", {"labels": "a=b"}, "labels among"),
        ("spec.rayClusterConfig.headGroupSpec.resources", {"CPU": "1"}, "resources twice"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.minReplicas", 3, "no number is in"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.suspend", True, "suspended"),
    ],
)
def test_a_broken_rule_is_found(path: str, value: object, rule: str) -> None:
    """Each of the rules can fail."""
    service = copy.deepcopy(ray_service(render("local")))
    *names, last = path.split(".")
    place: Any = service
    for name in names:
        place = place[int(name)] if name.isdigit() else place[name]
    place[int(last) if last.isdigit() else last] = value
    assert any(rule in each for each in broken_rules(service))
