"""One replica: HTTP application, tokenizer, engine and model in one Serve actor."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.api.app import create_app
from service.api.logs import configure_logging
from service.api.state import MIB, ApiState
from service.assembly import Engine, load_engine
from service.config import Settings
from service.engine.loop import EngineBackend, LoopConfig
from service.errors import EngineError
from service.metrics.exposition import render
from service.metrics.multiprocess import configure
from service.metrics.recorder import Recorder, ReplicaInfo


class Replica:
    """The deployment class. Serve calls `__serve_build_asgi_app__` once after the constructor."""

    def __init__(self, settings: Settings, metrics_directory: str) -> None:
        directory = Path(metrics_directory)
        configure(directory)
        # Serve has put a logger in place of sys.stderr, which would wrap each of our lines into one of its own.
        configure_logging(settings.log_format, stream=sys.__stderr__)
        engine = load_engine(settings)
        recorder = Recorder(_info(settings, engine), CollectorRegistry())
        self._backend = EngineBackend(
            engine.core,
            LoopConfig(max_waiting=settings.max_waiting, heartbeat_timeout_s=settings.heartbeat_timeout_s),
            observer=recorder.on_step,
        )
        self._backend.start()
        self._state = ApiState(
            backend=self._backend,
            tokenizer=engine.tokenizer,
            model_id=engine.model_id,
            version=__version__,
            created_at=int(time.time()),
            recorder=recorder,
            render_metrics=lambda: render(directory),
            max_body_bytes=int(settings.max_body_mib * MIB),
            log_prompts=settings.log_prompts,
            cors_origins=settings.cors_origins,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return without_request_id(create_app(self._state))

    def check_health(self) -> None:
        """Called by Serve: raises when the engine's heartbeat has stopped, so that the replica is replaced."""
        health = self._backend.health()
        if not health.alive:
            raise EngineError(health.reason)

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests (503) and finish what is accepted; what takes longer than `timeout_s` is aborted."""
        await self._backend.drain(timeout_s)

    def __del__(self) -> None:
        """Called by Serve when no request is left."""
        if hasattr(self, "_backend"):
            self._backend.close()


def without_request_id(app: ASGIApp) -> ASGIApp:
    """`app` without x-request-id in its answers: Serve's own server adds the same one, and two are one too many."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await app(scope, receive, send_without)

    return wrapped


def _info(settings: Settings, engine: Engine) -> ReplicaInfo:
    return ReplicaInfo(
        model_name=engine.model_id,
        version=__version__,
        max_model_len=engine.core.max_model_len,
        num_blocks=engine.runner.num_blocks,
        block_size=engine.runner.block_size,
        cache_dtype=engine.cache_dtype,
        prefix_caching=settings.prefix_caching,
    )
