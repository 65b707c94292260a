"""The weight that a replica asks of HAProxy."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fleet.environment import run_directory
from service.fleet.weight import MAX_WEIGHT, WeightTeller, tell, weight
from tests.fleet.server_process import ServerProcess, eventually


def test_an_idle_replica_has_the_whole_weight() -> None:
    """Whatever it did before, and before it did anything."""
    assert weight(0.0, 0.0) == weight(0.0, 1000.0) == MAX_WEIGHT


def test_a_prompt_of_mean_length_that_waits_halves_it() -> None:
    """One request's tokens wait: another one would be served second."""
    assert weight(1000.0, 1000.0) == MAX_WEIGHT // 2


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1e9))
def test_more_waiting_tokens_never_weigh_more(left: float, more: float, mean: float) -> None:
    """And every weight is one that HAProxy takes, and that does not take the replica out."""
    assert 1 <= weight(left + more, mean) <= weight(left, mean) <= MAX_WEIGHT


def test_it_is_told_when_it_changes_and_now_and_then(tmp_path: Path) -> None:
    """One command in each connection, as HAProxy's admin socket wants it; a connection that breaks changes nothing."""
    weights = iter([7, 7, 7, 8])
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX) as haproxy:
        haproxy.bind(str(tmp_path / "admin.sock"))
        haproxy.listen()
        teller = WeightTeller(tmp_path / "admin.sock", "http-headcount/SERVE_REPLICA_x", lambda: next(weights, 8))
        teller.start()
        for answer in (b"", b"\n", b"\n"):
            connection, _ = haproxy.accept()
            with connection:
                heard.append(connection.recv(4096).decode())
                connection.sendall(answer)
        teller.stop()
    assert [line.removeprefix("set server http-headcount/SERVE_REPLICA_x weight ") for line in heard] == [
        "7\n",
        "8\n",
        "8\n",
    ]
    eventually(lambda: not any(thread.name == "weight" for thread in threading.enumerate()))


def test_nobody_at_the_socket_is_no_error(tmp_path: Path) -> None:
    """As while HAProxy is replaced."""
    assert tell(tmp_path / "admin.sock", "show info") == ""


@pytest.mark.cluster
def test_haproxy_knows_the_weights_of_all_replicas(server: ServerProcess) -> None:
    """Of a real HAProxy: idle replicas weigh alike, and as much as is possible."""
    (haproxy,) = run_directory(server.port).glob("*/admin.sock")

    def weights() -> list[str]:
        lines = [line.split() for line in tell(haproxy, "show servers state http-headcount").splitlines()]
        return [fields[7] for fields in lines if len(fields) > 7 and fields[3].startswith("SERVE_REPLICA")]

    eventually(lambda: set(weights()) == {str(MAX_WEIGHT)})
    assert len(weights()) > 0
