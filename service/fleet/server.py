"""`headcount serve`: a local Ray with Serve and the application on it, from start to drained."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from service.api.keys import read_tenants
from service.config import Settings, as_environment
from service.errors import StartupError
from service.fleet.brain import state_directory_of
from service.fleet.environment import apply, ray_environment, run_directory

PROBE_PERIOD_S = 0.2
PARKED_S = 3600.0
PROBE_TIMEOUT_S = 5.0
# A replica needs a moment beyond its drain, to end what did not finish.
DRAIN_MARGIN_S = 10.0
LOCAL_HOSTS = ("127.0.0.1", "::1", "localhost")


def run_server(settings: Settings, *, say: Callable[[str], None], on_ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM, then drain; a second signal cuts the drain short.

    `say` gets a line for each stage. Raises StartupError when the service does not come up; nothing is left behind.
    """
    # By itself SIGTERM does nothing to a container's first process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check_port(settings.host, settings.port)
    check_state_directory(settings)
    check_keys(settings, say)
    prepare(settings)
    directory = run_directory(settings.port)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    apply(ray_environment(settings, directory), os.environ)
    try:
        _serve(settings, say, on_ready)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def check_port(host: str, port: int) -> None:
    """Raise StartupError if nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(
                f"Cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or choose another with --port"
                " or --host."
            ) from None


def check_state_directory(settings: Settings) -> None:
    """Raise StartupError if the autoscaler cannot keep there what it learns."""
    directory = state_directory_of(settings)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise StartupError(f"Cannot write to {directory} ({error.strerror}): choose another --state-dir.") from None


def check_keys(settings: Settings, say: Callable[[str], None]) -> None:
    """Raise ConfigError if keys are to be asked for and cannot be read; say who gets in if none are."""
    if settings.api_keys_path is not None:
        read_tenants(settings.api_keys_path)
    elif settings.host not in LOCAL_HOSTS:
        say(f"Whoever reaches {settings.host}:{settings.port} may use it: --api-keys-file has it ask for keys.")


def prepare(settings: Settings) -> None:
    """Fetch the model and prepare its weights, in a process of its own: this one stays small, and never imports torch.

    What is wrong with the model or the machine is said there, on standard error; raises SystemExit with its status.
    """
    if settings.runner == "synthetic":
        return
    command = [sys.executable, "-m", "service.cli", "model", "prepare"]
    status = subprocess.run(command, env=os.environ | as_environment(settings), check=False).returncode  # noqa: S603
    if status != 0:
        raise SystemExit(status)


def _serve(settings: Settings, say: Callable[[str], None], on_ready: Callable[[], None]) -> None:
    import ray  # noqa: PLC0415 - Ray reads its environment when it is imported
    from ray import serve  # noqa: PLC0415

    from service.fleet import names  # noqa: PLC0415
    from service.fleet.application import application  # noqa: PLC0415
    from service.fleet.front import front  # noqa: PLC0415

    replicas: Any = None  # handles of the two deployments, once they run
    fleet: Any = None
    try:
        say("Starting Ray …")
        ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, _node_ip_address="127.0.0.1")
        # SIGTERM interrupts as Ctrl-C does; Ray has just put its own handler in place.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        say(f"Starting {settings.min_replicas} replica(s) of {settings.model_id} …")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": settings.host, "port": settings.port, "location": "HeadOnly"})
        replicas = serve.run(application(settings), name=names.MODEL_APPLICATION, route_prefix=names.MODEL_PREFIX)
        fleet = serve.run(front(settings), name=names.FRONT_APPLICATION, route_prefix=names.FRONT_PREFIX)
        _await_ready(settings)
        on_ready()
        while True:  # not a lock: a second interrupt may come while the first is being raised
            time.sleep(PARKED_S)
    except KeyboardInterrupt:
        say(f"Draining: what is running has {settings.drain_timeout_s:g} s to finish; interrupt again to cut it short.")
        with suppress(KeyboardInterrupt):
            deadline = time.monotonic() + settings.drain_timeout_s
            _drain(replicas, fleet, settings.drain_timeout_s)
            _delete(serve.delete, (names.MODEL_APPLICATION, names.FRONT_APPLICATION), deadline)
        say("Stopped.")
    except RuntimeError as error:
        raise StartupError(f"The service did not start: {error}") from error
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):  # nothing is left to cut short
            signal.signal(signum, signal.SIG_IGN)
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # its threads outlive Ray, and complain of it
        ray.shutdown()


def _drain(replicas: Any, fleet: Any, timeout_s: float) -> None:
    """Have every replica finish what it has and refuse what is new, and the front say so.

    Left to itself, Serve takes the route away first (404 for who comes now) or keeps sending new requests.
    """
    if fleet is not None:
        with suppress(Exception):
            fleet.broadcast("drain").results(timeout_s=DRAIN_MARGIN_S, return_exceptions=True)
    if replicas is not None:
        with suppress(Exception):  # of a replica that dies or hangs: Serve ends it next
            answers = replicas.broadcast("drain", timeout_s)
            answers.results(timeout_s=timeout_s + DRAIN_MARGIN_S, return_exceptions=True)


def _delete(delete: Callable[[str], None], applications: tuple[str, ...], deadline: float) -> None:
    """Have Serve take the applications down; a replica that was already on its way out and still has a stream gets no
    more time than the others."""

    def delete_all() -> None:
        with suppress(Exception):  # when time is up, Ray goes while Serve still waits
            for name in applications:
                delete(name)

    thread = threading.Thread(target=delete_all, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()) + DRAIN_MARGIN_S)


def _await_ready(settings: Settings) -> None:
    """Wait until a request to the public port finds a ready replica."""
    url = f"{settings.url}/health/ready"
    deadline = time.monotonic() + settings.startup_timeout_s
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=PROBE_TIMEOUT_S, trust_env=False).is_success:
                return
        time.sleep(PROBE_PERIOD_S)
    raise StartupError(
        f"No replica was ready within {settings.startup_timeout_s:g} s: see above, or raise --startup-timeout-s."
    )
