"""A real `headcount serve` in a process of its own, on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from service.bench.serving import command_of
from service.fleet.environment import free_port

START_DEADLINE_S = 900.0  # these machines can be very slow for minutes
STOP_DEADLINE_S = 180.0


class ServerProcess:
    """Reads the server's output line by line in a thread; it is ready when it says so."""

    def __init__(self, arguments: list[str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines: list[str] = []
        self.is_ready = False
        self._has_spoken = threading.Event()  # said that it is ready, or ended
        self._state = TemporaryDirectory()
        self.state_dir = Path(self._state.name)
        flags = ["--port", str(self.port), "--state-dir", self._state.name]
        flags += ["--queue-timeout-s", str(START_DEADLINE_S)]  # slow machines are not what most tests are about
        command = [sys.executable, "-m", "service.cli", "serve", *flags, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        assert self._has_spoken.wait(START_DEADLINE_S), self.output
        assert self.is_ready, self.output

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Signal it, wait, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        status = self.process.wait(STOP_DEADLINE_S)
        self._reader.join(STOP_DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._state.cleanup()
        return status

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=STOP_DEADLINE_S, trust_env=False)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("Ready."):
                self.is_ready = True
                self._has_spoken.set()
        self._has_spoken.set()


@contextmanager
def running_server(*arguments: str) -> Iterator[ServerProcess]:
    server = ServerProcess(list(arguments))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return bool(command_of(pid))


def eventually(is_true: Callable[[], bool]) -> None:
    """Wait until it is."""
    deadline = time.monotonic() + STOP_DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.1)
