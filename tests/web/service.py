"""The application over fakes, behind a path prefix, in a thread of its own: what a browser can be pointed at."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from service.api.app import create_app
from service.api.keys import KeyRing
from service.attention import AttentionMap, AttentionRequest, AttentionShape, HeadSummary, HeadWeights, Link
from tests.api.fakes import MODEL_ID, ScriptedBackend, make_state, serving

PREFIX = "/some/where"
SHAPE = AttentionShape(num_layers=4, num_heads=3, num_kv_heads=3, sliding_window=None)
BEST = (2, 1)  # the head that links any token to the one five before it


class RoomyBackend(ScriptedBackend):
    """Has room for what the page asks for by itself."""

    max_model_len = 4096


class FakeFleet:
    """A fleet of one replica, and whatever is decided while the page is open."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []
        self.decide(0, 1, "0 → 1: a request waits, and Serve starts the first replica for it without asking.")
        self.decide(1, 1, "1 stay: 0.2 replicas of work now, 0.4 with its bursts.")

    def decide(self, current: int, desired: int, reason: str) -> None:
        number = len(self.made) + 1
        self.made.append(
            {
                "number": number,
                "at": 1.8e9 + number,
                "current": current,
                "desired": desired,
                "reason": reason,
                "source": "brain",
                "terms": {"need": 0.4},
            }
        )

    async def status(self) -> Mapping[str, Any]:
        steps = {"num_steps": 9, "num_sequences": 9, "duration_s": 0.4}
        stats = {"num_running": 1, "num_waiting": 2, "kv_usage": 0.25, "num_finished": 4, "num_slo_misses": 1}
        return {
            "model": MODEL_ID,
            "min_replicas": 0,
            "max_replicas": 3,
            "slo": {"ttft_s": 2.0, "tpot_s": 0.1},
            "price_per_replica_hour": 1.5,
            "replica_states": {"RUNNING": 1, "STARTING": 1},
            "replicas": [
                {"replica_id": "SERVE_REPLICA::headcount#Replica#abc", "state": "ready", "since": 1.8e9}
                | {"stats": {**stats, "steps": steps}},
                {"replica_id": "starting-0", "state": "starting", "since": 1.8e9, "stats": None},
            ],
            "num_held": 0,
            "cost": {"watched_s": 60.0, "replica_s": 7200.0, "saved_replica_s": 3600.0, "peak": 2},
        }

    async def decisions(self, since: int, limit: int, *, only_changes: bool) -> Sequence[Mapping[str, Any]]:
        found = [each for each in self.made if each["number"] > since]
        return [each for each in found if not only_changes or each["current"] != each["desired"]][-limit:]


class FakeHeads:
    """Every head looks at the first token, but for `BEST`, which looks five back with 0.75."""

    shape = SHAPE

    async def look(self, request: AttentionRequest) -> AttentionMap:
        num_tokens, position = len(request.token_ids), request.position
        summary = HeadSummary(entropy=0.5, distance=1.0, previous=0.1, first=0.9, induction=None)
        every = [(layer, head) for layer in range(SHAPE.num_layers) for head in range(SHAPE.num_heads)]
        row = [] if position is None else [_weights((layer, head), position) for layer, head in every]
        return AttentionMap(
            summaries=[[summary] * SHAPE.num_heads for _ in range(SHAPE.num_layers)],
            weights=[
                HeadWeights(layer, head, [_weights((layer, head), each) for each in range(num_tokens)])
                for layer in request.layers
                for head in request.heads
            ],
            links=[] if position is None or position < 6 else [Link(*BEST, position - 5, 0.75)],
            row=[row[start : start + SHAPE.num_heads] for start in range(0, len(row), SHAPE.num_heads)],
        )


def _weights(head: tuple[int, int], position: int) -> list[float]:
    if head == BEST and position > 5:
        return [0.25] + [0.75 if each == position - 5 else 0.0 for each in range(1, position + 1)]
    return [1.0] + [0.0] * position


@contextmanager
def running(backend: ScriptedBackend, fleet: FakeFleet, keys: KeyRing | None = None) -> Iterator[str]:
    """The address of the page."""
    app = create_app(make_state(backend, fleet=fleet, attention=FakeHeads(), keys=keys))
    is_up, port = threading.Event(), list[int]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(Starlette(routes=[Mount(PREFIX, app)])) as bound:
            port.append(bound)
            is_up.set()
            await stop.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_up.wait(60)
    try:
        yield f"http://127.0.0.1:{port[0]}{PREFIX}/"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
