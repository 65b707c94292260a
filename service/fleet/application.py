"""The Serve application: `build` for `serve run` and Serve config files, `application` for `headcount serve`."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ray import serve
from ray.serve import Application

from service.config import Settings, load_settings
from service.fleet.environment import DEREGISTRATION_S, state_directory
from service.fleet.replica import Replica

NAME = "headcount"
# Serve's own limit must never bind: the engine has the queue, and answers 429 with a reason when it is full.
MAX_ONGOING_REQUESTS = 100_000
# A replica is unhealthy when its engine's heartbeat stops, not when a busy machine is slow to answer Serve.
HEALTH_CHECK_PERIOD_S = 5
HEALTH_CHECK_TIMEOUT_S = 120
SHUTDOWN_MARGIN_S = 5


def application(settings: Settings) -> Application:
    """The deployment of `settings`, ready for `serve.run`."""
    actor_options: dict[str, float] = {"num_cpus": settings.replica_cpus}
    if settings.device.startswith("cuda"):
        actor_options["num_gpus"] = 1
    deployment: serve.Deployment = serve.deployment(  # type: ignore[assignment]
        serve.ingress()(Replica),
        name="Replica",
        num_replicas=settings.max_replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options=actor_options,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=settings.drain_timeout_s + DEREGISTRATION_S + SHUTDOWN_MARGIN_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    )
    return deployment.bind(settings, str(state_directory(settings.port) / "metrics"))


def build(arguments: Mapping[str, str]) -> Application:
    """Application builder: `import_path: service.fleet.application:build`, `args:` are settings."""
    return application(load_settings(flags=arguments, environment=os.environ).settings)
