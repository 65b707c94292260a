"""A real `headcount serve` for a benchmark, from ready to drained. Linux, where its processes are looked for."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.fleet.environment import free_port


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where it listens, and its first process."""

    port: int
    pid: int

    def processes(self, mark: str) -> list[int]:
        """Ids of those among its processes whose command contains `mark`."""
        children: dict[int, list[int]] = defaultdict(list)
        commands: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    commands[int(entry.name)] = (entry / "cmdline").read_text()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                children[parent].append(int(entry.name))
        family = [self.pid]
        for each in family:
            family += children[each]
        return [each for each in family if mark in commands.get(each, "")]


@contextmanager
def running_server(*flags: str) -> Iterator[int]:
    """Started with `flags`, on a free port: which one."""
    with server_process(*flags) as server:
        yield server.port


@contextmanager
def server_process(*flags: str) -> Iterator[RunningServer]:
    """As `running_server`, for who wants more of it than its port."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    try:
        assert server.stdout is not None
        next(line for line in server.stdout if line.startswith("Ready"))
        # What it says later must not fill the pipe, or it waits for a reader.
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield RunningServer(port, server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
