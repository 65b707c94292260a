"""A real `headcount serve` for a benchmark, from ready to drained. Linux, where its processes are looked for."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.fleet.environment import free_port

MOST_SHOWN = 4000  # characters of what a server that did not start has said


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where it listens, and its first process."""

    port: int
    pid: int

    def processes(self, mark: str) -> list[int]:
        """Ids of those among its processes whose command contains `mark`."""
        return [pid for pid in (self.pid, *descendants(self.pid)) if mark in command_of(pid)]


def descendants(pid: int) -> list[int]:
    """Process ids of all descendants of a process, parents first."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children[parent].append(int(entry.name))
    family = [pid]
    for each in family:
        family += children[each]
    return family[1:]


def command_of(pid: int) -> str:
    """The command line of a process, empty when it is gone or only its exit status is left."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def flags_of(settings: Mapping[str, object]) -> list[str]:
    """For `headcount serve`."""
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


@contextmanager
def running_server(*flags: str) -> Iterator[RunningServer]:
    """Started with `flags`, on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), *flags]
    with tempfile.TemporaryFile() as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)  # noqa: S603
        try:
            assert server.stdout is not None
            if not any(line.startswith("Ready") for line in server.stdout):
                errors.seek(0)
                raise RuntimeError(f"The server did not start:\n{errors.read().decode()[-MOST_SHOWN:]}")
            # What it says later must not fill the pipe, or it waits for a reader.
            threading.Thread(target=server.stdout.read, daemon=True).start()
            yield RunningServer(port, server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
