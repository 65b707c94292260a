"""What answers while no replica may be there: health, metrics, documentation, tokens of texts, the view of the fleet.

One light process without a model. Nothing that is asked here wakes a fleet of zero.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import ray
from prometheus_client import CollectorRegistry
from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from starlette.types import ASGIApp

from service import __version__
from service.api.app import create_app
from service.api.intake import Intake
from service.api.keys import KeyRing
from service.api.logs import configure_logging
from service.api.state import MIB, ApiState
from service.assembly import context_length, load_tokenizer_of
from service.backend import TokenStream
from service.config import Settings, load_settings
from service.errors import UnavailableError
from service.fleet import names
from service.fleet.adapters import adapters_of_front
from service.fleet.asgi import at_root, without_request_id
from service.fleet.brain_link import ASK_TIMEOUT_S, ask_brain, find_brain
from service.fleet.environment import metrics_directory
from service.health import Health, HealthState
from service.metrics.exposition import render
from service.metrics.fleet import FleetCollector, FleetStats
from service.metrics.multiprocess import configure
from service.metrics.recorder import Recorder
from service.types import Claim, GenerateRequest

WATCH_PERIOD_S = 0.5
NOTHING_HERE = "Nothing is generated at this address."


class Front:
    """The deployment class. Serve calls `__serve_build_asgi_app__` once after the constructor."""

    def __init__(self, settings: Settings) -> None:
        directory = metrics_directory(settings, of_front=True)
        configure(directory)
        configure_logging(settings.log_format, stream=sys.__stderr__)
        self._settings = settings
        self._directory = directory
        tokenizer = load_tokenizer_of(settings)  # fetches the model if need be
        self._backend = FleetBackend(settings)
        self._state = ApiState(
            backend=self._backend,
            tokenizer=tokenizer,
            model_id=settings.model_id,
            version=__version__,
            created_at=int(time.time()),
            recorder=Recorder(None, CollectorRegistry()),
            render_metrics=self._render,
            intake=Intake(int(settings.max_body_mib * MIB)),
            cors_origins=settings.cors_origins,
            keys=None if settings.api_keys_path is None else KeyRing(settings.api_keys_path),
            fleet=BrainView(settings, self._backend),
            adapters=adapters_of_front(settings),
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return at_root(without_request_id(create_app(self._state)))

    async def drain(self) -> None:
        """Say that the service is not ready any more."""
        self._backend.drain()

    def _render(self) -> tuple[bytes, str]:
        status: Mapping[str, Any] = {}
        with suppress(ValueError, RayError):
            status = ray.get(find_brain().status.remote(), timeout=ASK_TIMEOUT_S)
        return render(self._directory, FleetCollector(_stats(self._settings, status)))


class FleetBackend:
    """A `Backend` that generates nothing: its health is that of the fleet.

    A thread asks Serve, so that `health` never waits. A fleet that may be empty is ready when Serve is content with it.
    """

    def __init__(self, settings: Settings) -> None:
        self._may_be_empty = settings.min_replicas == 0
        self._states: Mapping[str, int] = {}
        self._reason = "The fleet is starting."
        self._is_draining = False
        self.max_model_len = context_length(settings)
        self.vocab_size = 0
        threading.Thread(target=self._watch, name="fleet-watch", daemon=True).start()

    @property
    def replica_states(self) -> Mapping[str, int]:
        """How many replicas are in which of Serve's states."""
        return self._states

    def check_room(self, claim: Claim) -> None:  # noqa: ARG002 - whoever it is
        raise UnavailableError(NOTHING_HERE)

    def generate(self, request: GenerateRequest) -> TokenStream:  # noqa: ARG002 - whatever it is
        raise UnavailableError(NOTHING_HERE)

    def health(self) -> Health:
        if self._is_draining:
            reason = "The server is draining: it finishes what it has and accepts nothing new."
            return Health(state=HealthState.DRAINING, reason=reason)
        return Health(state=HealthState.READY if self._reason == "ok" else HealthState.LOADING, reason=self._reason)

    def drain(self) -> None:
        self._is_draining = True

    def _watch(self) -> NoReturn:
        while True:
            try:
                application = serve.status().applications.get(names.MODEL_APPLICATION)
                deployment = None if application is None else application.deployments.get(names.REPLICA)
                self._states = (
                    {}
                    if deployment is None
                    else {str(state): number for state, number in deployment.replica_states.items()}
                )
                has_one = self._states.get("RUNNING", 0) > 0
                is_content = deployment is not None and self._may_be_empty and deployment.status != "UNHEALTHY"
                self._reason = "ok" if has_one or is_content else "No replica is ready."
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not known to be ready
                self._reason = f"The state of the fleet is not known ({type(error).__name__})."
            time.sleep(WATCH_PERIOD_S)


class BrainView:
    """A `FleetView` that asks the autoscaler's brain."""

    def __init__(self, settings: Settings, backend: FleetBackend) -> None:
        self._settings = settings
        self._backend = backend

    async def status(self) -> Mapping[str, Any]:
        settings, status = self._settings, await ask_brain("status")
        price = settings.price_per_replica_hour
        waits = [each["stats"]["wait_s"] for each in status["replicas"] if each["stats"] is not None]
        return {
            "model": settings.model_id,
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "slo": {"ttft_s": settings.slo_ttft_s, "tpot_s": settings.slo_tpot_s},
            "price_per_replica_hour": price,
            "replica_states": dict(self._backend.replica_states),
            "num_overloaded": sum(wait_s > settings.longest_wait_s for wait_s in waits),
            **status,
        }

    async def decisions(self, since: int, limit: int, *, only_changes: bool) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = await ask_brain("decisions", since, limit, only_changes)
        return found


def _stats(settings: Settings, status: Mapping[str, Any]) -> FleetStats:
    known: dict[str, Any] = {}
    if status.get("decision") is not None:
        known = {
            "decision_age_s": status["age_s"],
            "desired": status["decision"]["desired"],
            "terms": status["decision"]["terms"],
            "cost": status["cost"],
            "num_held": status["num_held"],
            "num_decisions": status["num_decisions"],
            "num_fallbacks": status["num_fallbacks"],
        }
    return FleetStats(
        min_replicas=settings.min_replicas,
        max_replicas=settings.max_replicas,
        price_per_replica_hour=settings.price_per_replica_hour,
        **known,
    )


def front(settings: Settings) -> Application:
    """The deployment of `settings`, ready for `serve.run`."""
    deployment: serve.Deployment = serve.deployment(  # type: ignore[assignment]
        serve.ingress()(Front),
        name=names.FRONT,
        num_replicas=1,
        max_ongoing_requests=names.MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=5,
        health_check_timeout_s=names.HEALTH_CHECK_TIMEOUT_S,
    )
    return deployment.bind(settings)


def build(arguments: Mapping[str, str]) -> Application:
    """Application builder: `import_path: service.fleet.front:build`, `args:` are settings."""
    return front(load_settings(flags=arguments, environment=os.environ).settings)
