"""The replicas as a Serve application: `build` for Serve config files, `application` for `headcount serve`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from service.config import Settings, as_environment, load_settings
from service.fleet import names
from service.fleet.environment import DEREGISTRATION_S, metrics_directory
from service.fleet.policy import PERIOD_S, ReplicaPolicy
from service.fleet.replica import Replica

SHUTDOWN_MARGIN_S = 5
# Serve measures what it averages over this; it also sets how often it asks replicas for their numbers (a fifth of it).
LOOK_BACK_S = 4 * PERIOD_S


def application(settings: Settings) -> Application:
    """The deployment of `settings`, ready for `serve.run`."""
    actor_options: dict[str, float] = {"num_cpus": settings.replica_cpus}
    if settings.device.startswith("cuda"):
        actor_options["num_gpus"] = 1
    deployment: serve.Deployment = serve.deployment(  # type: ignore[assignment]
        serve.ingress()(Replica),
        name=names.REPLICA,
        autoscaling_config=_autoscaling(settings),
        max_ongoing_requests=names.MAX_ONGOING_REQUESTS,
        ray_actor_options=actor_options,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.scale_down_timeout_s + DEREGISTRATION_S + SHUTDOWN_MARGIN_S,
        health_check_period_s=names.HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=names.HEALTH_CHECK_TIMEOUT_S,
    )
    return deployment.bind(settings, str(metrics_directory(settings)))


def _autoscaling(settings: Settings) -> AutoscalingConfig:
    """All of Serve's own delays and factors are off: one owner decides."""
    return AutoscalingConfig(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        metrics_interval_s=PERIOD_S,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=0,
        downscale_delay_s=0,
        policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
            policy_function=f"{ReplicaPolicy.__module__}:{ReplicaPolicy.__name__}",
            policy_kwargs={"variables": as_environment(settings)},
        ),
    )


def build(arguments: Mapping[str, str]) -> Application:
    """Application builder: `import_path: service.fleet.application:build`, `args:` are settings."""
    return application(load_settings(flags=arguments, environment=os.environ).settings)
