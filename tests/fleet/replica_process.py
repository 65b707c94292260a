"""A replica without Ray: the application over a synthetic engine, behind the server that Serve would start.

python -m tests.fleet.replica_process PORT STEP_S
"""

from __future__ import annotations

import sys
import time

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.app import create_app
from service.api.state import ApiState
from service.assembly import load_engine
from service.config import Settings
from service.engine.config import LoopConfig
from service.engine.loop import EngineBackend
from service.engine.synthetic import StepCost
from service.metrics.exposition import render
from service.metrics.recorder import Recorder, ReplicaInfo

HEALTH_PATH = "/-/healthz"  # where HAProxy asks whether a replica is there


def application(step_s: float) -> ASGIApp:
    """A token takes `step_s`."""
    engine = load_engine(Settings(runner="synthetic", synthetic_cost=StepCost(base_s=step_s)))
    runner, registry = engine.model.runner, CollectorRegistry()
    info = ReplicaInfo(
        model_name=engine.model_id,
        max_model_len=engine.core.max_model_len,
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        cache_dtype=engine.model.cache_dtype,
        prefix_caching=True,
    )
    recorder = Recorder(info, registry)
    backend = EngineBackend(engine.core, LoopConfig(), observer=recorder.on_step)
    backend.start()
    return create_app(
        ApiState(
            backend=backend,
            tokenizer=engine.tokenizer,
            model_id=engine.model_id,
            version="0",
            created_at=int(time.time()),
            recorder=recorder,
            render_metrics=lambda: render(registry),
        )
    )


def with_health(app: ASGIApp) -> ASGIApp:
    """Serve answers HAProxy's question itself."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        here = PlainTextResponse("success") if scope.get("path") == HEALTH_PATH else app
        await here(scope, receive, send)

    return wrapped


if __name__ == "__main__":
    uvicorn.run(
        with_health(application(float(sys.argv[2]))),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        lifespan="off",
        log_config=None,
        timeout_keep_alive=90,  # Serve's own default
    )
