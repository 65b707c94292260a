"""A real `headcount serve` for a benchmark, from ready to drained."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.fleet.environment import free_port


@contextmanager
def running_server(*flags: str) -> Iterator[int]:
    """Started with `flags`, on a free port: which one."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    try:
        assert server.stdout is not None
        next(line for line in server.stdout if line.startswith("Ready"))
        # What it says later must not fill the pipe, or it waits for a reader.
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
