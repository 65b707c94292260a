"""One Serve configuration, for `serve deploy` and for KubeRay, that fits the pods it runs in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import ray
import yaml
from click.testing import CliRunner
from ray.serve.schema import ServeDeploySchema

from service.cli import SPIN_COUNT, SPIN_VARIABLE, main
from service.config import Settings, load_settings
from service.fleet import names
from service.fleet.application import SHUTDOWN_MARGIN_S
from service.fleet.environment import DEREGISTRATION_S, ray_environment
from tests.k8s.policies import number_of_bytes, number_of_cpus
from tests.k8s.rendering import RAY_SERVICES, ROOT, Resource, environment, pods, ray_service, render, worker_group

FILES = ("serve.yaml", "serve-production.yaml", "serve-scale-to-zero.yaml")
# By which overlays are told apart; all else is the same.
BOUNDS = ("min_replicas", "max_replicas")
# Of a machine that several servers share, and of a Ray that lives in its server's process: a pod has neither.
OF_A_SHARED_MACHINE = {
    "RAY_AUTH_MODE",  # which KubeRay sets
    "RAY_AUTH_TOKEN",
    "RAY_ENABLE_AUTO_CONNECT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC",
    "RAY_SERVE_HAPROXY_SOCKET_PATH",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
}
# Depends on the machine that asks.
OF_THE_PROCESSORS = "RAY_SERVE_HAPROXY_NBTHREAD"
GIB = 2**30


def _file(name: str) -> str:
    return (ROOT / "deploy" / name).read_text()


def _arguments(text: str) -> list[dict[str, Any]]:
    return [application["args"] for application in yaml.safe_load(text)["applications"]]


def settings_of(resources: list[Resource]) -> Settings:
    """As the builders of the applications load them in a pod."""
    arguments = _arguments(ray_service(resources)["spec"]["serveConfigV2"])[0]
    variables = {name: value for name, value in environment(resources).items() if name.startswith("HEADCOUNT_")}
    return load_settings(flags=arguments, environment=variables).settings


def test_serve_takes_every_file() -> None:
    """Each fits Serve's schema, names both applications as `headcount serve` does, and gives them the same settings."""
    for name in FILES:
        schema = ServeDeploySchema.model_validate(yaml.safe_load(_file(name)))
        assert [(each.name, each.route_prefix, each.import_path) for each in schema.applications] == [
            (names.MODEL_APPLICATION, names.MODEL_PREFIX, "service.fleet.application:build"),
            (names.FRONT_APPLICATION, names.FRONT_PREFIX, "service.fleet.front:build"),
        ]
        model, front = _arguments(_file(name))
        assert model == front
        assert [each.name for each in schema.applications[1].deployments] == [names.FRONT]


def test_the_files_differ_in_their_bounds_only() -> None:
    """What else is said in one is said in all."""

    def without_bounds(text: str) -> Mapping[str, Any]:
        config: dict[str, Any] = yaml.safe_load(text)
        for application in config["applications"]:
            application["args"] = {key: value for key, value in application["args"].items() if key not in BOUNDS}
        return config

    first, *others = [without_bounds(_file(name)) for name in FILES]
    assert all(other == first for other in others)
    assert len({str(_arguments(_file(name))) for name in FILES}) == len(FILES)


@pytest.mark.parametrize("combination", RAY_SERVICES)
def test_a_ray_service_embeds_a_file_of_deploy(combination: str) -> None:
    """Letter by letter, the one that its overlay names."""
    overlay = combination.partition(",")[0]
    name = "serve.yaml" if overlay == "local" else f"serve-{overlay}.yaml"
    assert ray_service(render(combination))["spec"]["serveConfigV2"] == _file(name)


@pytest.mark.parametrize("combination", RAY_SERVICES)
def test_pods_follow_replicas(combination: str) -> None:
    """The bounds of pods are those of replicas, and a replica fills a pod: its processors, and no more threads."""
    resources = render(combination)
    settings, group = settings_of(resources), worker_group(resources)
    assert (group["minReplicas"], group["maxReplicas"]) == (settings.min_replicas, settings.max_replicas)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.replica_cpus == settings.threads == number_of_cpus(limits["cpu"])
    assert ("nvidia.com/gpu" in limits) == settings.device.startswith("cuda")
    assert settings.kv_cache_gib is not None
    if settings.device != "cuda":
        assert settings.kv_cache_gib * GIB < number_of_bytes(limits["memory"]) / 2


@pytest.mark.parametrize("combination", RAY_SERVICES)
def test_the_head_computes_nothing(combination: str) -> None:
    """It has no processors to give, and clients go by it where others always answer."""
    service = ray_service(render(combination))
    assert service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    min_replicas = _arguments(service["spec"]["serveConfigV2"])[0]["min_replicas"]
    assert service["spec"].get("excludeHeadPodFromServeSvc", False) == (min_replicas > 1)


@pytest.mark.parametrize("combination", RAY_SERVICES)
def test_a_worker_is_given_the_time_that_its_replica_is_given(combination: str) -> None:
    """What Serve grants a replica < the hook's deadline < the pod's grace <= the delay before an old cluster goes."""
    resources = render(combination)
    granted = settings_of(resources).scale_down_timeout_s + DEREGISTRATION_S + SHUTDOWN_MARGIN_S
    pod = worker_group(resources)["template"]["spec"]
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][2]
    deadline = int(hook.partition("--deadline-remaining-seconds ")[2].split()[0])
    grace = pod["terminationGracePeriodSeconds"]
    assert granted < deadline < grace <= ray_service(resources)["spec"]["rayClusterDeletionDelaySeconds"]


def test_a_keda_pod_is_given_the_time_that_its_requests_are_given() -> None:
    """drain_timeout_s < the pod's grace, less the hook."""
    resources = render("keda")
    settings = load_settings(
        flags={}, environment={k: v for k, v in environment(resources).items() if k.startswith("HEADCOUNT_")}
    ).settings
    (pod,) = pods(resources)
    assert settings.drain_timeout_s + 15 < pod.spec["terminationGracePeriodSeconds"]
    assert (settings.min_replicas, settings.max_replicas) == (1, 1)


def _differences(settings: Settings, variables: Mapping[str, str]) -> dict[str, str | None]:
    """What `headcount serve` would set for Ray on a machine of its own, and these variables do not."""
    wanted = ray_environment(settings, ROOT)
    compared = set(wanted) - OF_A_SHARED_MACHINE - {OF_THE_PROCESSORS}
    return {name: variables.get(name) for name in compared if variables.get(name) != wanted[name]}


@pytest.mark.parametrize("combination", RAY_SERVICES)
def test_ray_finds_the_environment_that_headcount_serve_gives_it(combination: str) -> None:
    """Variable for variable, HAProxy's among them; a thread of HAProxy for each processor at most."""
    resources = render(combination)
    settings, variables = settings_of(resources), environment(resources)
    assert _differences(settings, variables) == {}
    assert not OF_A_SHARED_MACHINE & set(variables)
    assert int(variables[OF_THE_PROCESSORS]) <= settings.replica_cpus


def test_a_variable_that_is_missing_or_different_is_found() -> None:
    """HAProxy that would cut the streams of replicas that drain for longer than now."""
    resources = render("local")
    variables = environment(resources)
    del variables["RAY_DEDUP_LOGS"]
    settings = settings_of(resources).model_copy(update={"scale_down_timeout_s": 900.0})
    assert _differences(settings, variables) == {
        "RAY_DEDUP_LOGS": None,
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "602",
    }


def test_what_prepares_a_model_needs_no_gpu() -> None:
    """It has none, though the replica does: it converts, and runs nothing; and it knows which of the two dtypes."""
    resources = render("production, gpu, model-volume")
    (container,) = worker_group(resources)["template"]["spec"]["initContainers"]
    assert container["command"] == ["headcount", "model", "prepare", "--portable"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert settings_of(resources).dtype != "auto"
    assert "--portable" in CliRunner().invoke(main, ["model", "prepare", "--help"]).output


def test_the_idle_threads_of_a_replica_sleep() -> None:
    """As the command line sees to by itself."""

    assert environment(render("local"))[SPIN_VARIABLE] == SPIN_COUNT


def test_ray_is_the_version_that_is_installed() -> None:
    """KubeRay turns on what this version can do."""

    assert ray_service(render("local"))["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__
