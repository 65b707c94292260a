"""What Ray finds in the environment."""

from __future__ import annotations

from pathlib import Path

from service.config import Settings
from service.fleet.environment import apply, metrics_directory, ray_environment

DIRECTORY = Path("run")


def test_two_servers_on_a_machine_share_no_port() -> None:
    """Serve's defaults are fixed, and one of its ports is shared with whoever asks for it."""
    variables = ray_environment(Settings(), DIRECTORY)
    ports = {name: value for name, value in variables.items() if name.endswith("_PORT")}
    assert len(ports) == 4
    assert len(set(ports.values())) == 4


def test_ray_asks_for_a_token_of_each_start() -> None:
    """It runs the code of whoever it lets in."""
    first, second = (ray_environment(Settings(data_plane=plane), DIRECTORY) for plane in ("haproxy", "serve"))
    assert first["RAY_AUTH_MODE"] == second["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_old_proxies_live_as_long_as_their_streams() -> None:
    """A change of replicas replaces HAProxy; the old one has as long as a replica that is scaled down."""
    variables = ray_environment(Settings(scale_down_timeout_s=1000, drain_timeout_s=5), DIRECTORY)
    assert int(variables["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]) >= 1000


def test_what_the_user_has_set_stays() -> None:
    """Ours are defaults."""
    environment = {"RAY_DEDUP_LOGS": "1"}
    apply(ray_environment(Settings(data_plane="serve"), DIRECTORY), environment)
    assert environment["RAY_DEDUP_LOGS"] == "1"
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"


def test_the_front_keeps_out_of_what_a_node_tells_itself() -> None:
    """Where nodes serve their own metrics, a figure must not be told twice."""
    together, apart = Settings(), Settings(metrics_port=9400)
    assert metrics_directory(together, of_front=True) == metrics_directory(together)
    assert metrics_directory(apart, of_front=True) != metrics_directory(apart)
