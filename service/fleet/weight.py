"""Which share of the next requests this replica should get, told to the HAProxy of its node.

HAProxy sends a request to the replica with the fewest requests for its weight. Requests are not equal: what a new one
waits for are the prompts that are not computed yet. So a replica lowers its weight while it has many of them. Measured
against equal weights in docs/decisions/0005.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray import serve

from service.fleet import names

PERIOD_S = 0.1
AGAIN_S = 1.0  # an HAProxy that has taken the place of another may know nothing
MAX_WEIGHT = 256  # of a server in HAProxy
_TIMEOUT_S = 1.0


class WeightTeller:
    """Tells the weight when it has changed, on a thread of its own from `start` to `stop`, as long as somebody is at
    `haproxy`, the path of its admin socket. Without an answer requests are shared by the weights told last."""

    def __init__(self, haproxy: Path, server: str, read: Callable[[], int]) -> None:
        self._haproxy = haproxy
        self._server = server
        self._read = read
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weight", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopped.set()

    def _run(self) -> None:
        told, told_at = 0, -math.inf
        while not self._is_stopped.wait(PERIOD_S):
            present = self._read()
            if present != told or time.monotonic() - told_at >= AGAIN_S:
                tell(self._haproxy, f"set server {self._server} weight {present}")
                told, told_at = present, time.monotonic()


def weight(num_prefill_left: float, mean_prompt_tokens: float) -> int:
    """1 to 256: inversely as the prompt tokens that wait, and those of a mean request, which may come next."""
    mean = max(1.0, mean_prompt_tokens)
    return max(1, round(MAX_WEIGHT * mean / (mean + num_prefill_left)))


def tell(haproxy: Path, command: str) -> str:
    """HAProxy's answer; nothing where nobody answers, as while HAProxy is replaced."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(haproxy))
            connection.sendall(f"{command}\n".encode())
            return connection.recv(4096).decode()
    except OSError:
        return ""


def teller_of_replica(directory: Path, read: Callable[[], int]) -> WeightTeller:
    """Of this replica, to the HAProxy that `headcount serve` puts into `directory`.

    Elsewhere nobody listens there. There may be several nodes then, each with an HAProxy that sends to all of them, and
    a weight told to one would say nothing of the replicas on other nodes.
    """
    haproxy = directory / ray.get_runtime_context().get_node_id() / "admin.sock"
    server = serve.get_replica_context().replica_id.to_full_id_str().replace("::", "_").replace("#", "-")
    return WeightTeller(haproxy, f"http-{names.MODEL_APPLICATION}/{server}", read)
