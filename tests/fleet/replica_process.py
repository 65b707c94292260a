"""A replica without Ray: the application over a synthetic engine, behind the server that Serve would start.

python -m tests.fleet.replica_process PORT STEP_S
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.assembly import load_engine
from service.bench.replica_parts import ready
from service.config import Settings
from service.engine.synthetic import StepCost

HEALTH_PATH = "/-/healthz"  # where HAProxy asks whether a replica is there


def application(step_s: float) -> ASGIApp:
    """A token takes `step_s`."""
    _, app = ready(load_engine(Settings(runner="synthetic", synthetic_cost=StepCost(base_s=step_s))))
    return app


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
