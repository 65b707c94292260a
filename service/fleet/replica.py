"""One replica: HTTP application, tokenizer, engine and model in one Serve actor."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from service import __version__
from service.api.app import create_app
from service.api.intake import Intake
from service.api.keys import KeyRing
from service.api.logs import configure_logging
from service.api.state import MIB, ApiState, Tracer
from service.assembly import load_engine
from service.autoscaling.report import Collector, Report
from service.config import Settings
from service.engine.config import LoopConfig
from service.engine.loop import EngineBackend
from service.errors import EngineError
from service.fleet.adapters import adapters_of_replica
from service.fleet.asgi import at_root, without_request_id
from service.fleet.brain import slo_of
from service.fleet.environment import run_directory
from service.fleet.replica_count import replica_count
from service.fleet.replica_facts import info_of, limits_of
from service.fleet.weight import teller_of_replica, weight
from service.metrics.exposition import render, serve_metrics
from service.metrics.multiprocess import configure
from service.metrics.recorder import Recorder
from service.types import StepStats

logger = logging.getLogger(__name__)


class Replica:
    """The deployment class. Serve calls `__serve_build_asgi_app__` once after the constructor."""

    def __init__(self, settings: Settings, metrics_directory: str) -> None:
        started_at = time.monotonic()
        directory = Path(metrics_directory)
        configure(directory)
        # Serve has put a logger in place of sys.stderr, which would wrap each of our lines into one of its own.
        configure_logging(settings.log_format, stream=sys.__stderr__)
        if settings.metrics_port is not None:
            serve_metrics(directory, settings.metrics_port)
        self._engine = load_engine(settings)
        self._tracer = _tracer(settings)
        self._collector = Collector(slo_of(settings))
        self._recorder = Recorder(info_of(settings, self._engine), CollectorRegistry())
        self._backend = EngineBackend(
            self._engine.core,
            LoopConfig(
                max_waiting=settings.max_waiting,
                heartbeat_timeout_s=settings.heartbeat_timeout_s,
                step_cost=self._engine.model.step_cost,
            ),
            observer=self._on_step,
        )
        self._backend.start()
        self._state = self._api_state(settings, directory)
        self._limits = limits_of(self._engine)
        backend = self._backend  # and not self: the teller's thread must not keep the replica alive
        self._teller = teller_of_replica(run_directory(settings.port), lambda: weight(*backend.prompts_ahead()))
        self._teller.start()
        self._start_up_s = time.monotonic() - started_at

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return at_root(without_request_id(create_app(self._state)))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve once a second, for the autoscaling policy."""
        report = Report(
            stats=self._collector.read(time.time()),
            limits=self._limits,
            cost_prior=self._engine.model.step_cost,
            start_up_s=self._start_up_s,
            is_draining=not self._backend.health().ready,
        )
        return report.to_numbers()

    def check_health(self) -> None:
        """Called by Serve: raises when the engine has failed, so that the replica is replaced.

        One that hangs ends its process: connections break, and HAProxy asks another replica for those who have no
        answer yet. Serve would end it in order, which answers each of them with 500.
        """
        health = self._backend.health()
        if health.alive:
            return
        if health.num_running + health.num_waiting > 0:
            logger.critical("the engine hangs, and takes the replica with it: %s", health.reason)
            os.kill(os.getpid(), signal.SIGKILL)
        raise EngineError(health.reason)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests (503) and finish what is accepted; what takes longer than `timeout_s` is aborted."""
        await self._backend.drain(timeout_s)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.flush)

    def __del__(self) -> None:
        """Called by Serve when no request is left."""
        if hasattr(self, "_backend"):
            self._backend.close()
            self._teller.stop()
            if self._tracer is not None:
                self._tracer.flush()

    def _api_state(self, settings: Settings, directory: Path) -> ApiState:
        model = self._engine.model
        return ApiState(
            backend=self._backend,
            tokenizer=self._engine.tokenizer,
            model_id=self._engine.model_id,
            version=__version__,
            created_at=int(time.time()),
            recorder=self._recorder,
            render_metrics=lambda: render(directory),
            intake=Intake(int(settings.max_body_mib * MIB)),
            write_timeout_s=settings.write_timeout_s,
            log_prompts=settings.log_prompts,
            cors_origins=settings.cors_origins,
            keys=None if settings.api_keys_path is None else KeyRing(settings.api_keys_path),
            num_replicas=replica_count(settings),
            tool_parser=settings.tool_parser,
            tracer=self._tracer,
            attention=None if model.attention is None else model.attention(self._backend),
            embedding=None if model.embedding is None else model.embedding(self._backend),
            adapters=adapters_of_replica(settings, self._engine),
            generates=model.generates,
        )

    def _on_step(self, step: StepStats) -> None:
        self._recorder.on_step(step)
        self._collector.on_step(step)


def _tracer(settings: Settings) -> Tracer | None:
    if settings.otlp_endpoint is None:
        return None
    from service.api import tracing  # noqa: PLC0415 - OpenTelemetry is there, and imported, only where it is asked for

    return tracing.RequestTracer(
        tracing.otlp_processor(settings.otlp_endpoint), version=__version__, wall_clock=time.time
    )
