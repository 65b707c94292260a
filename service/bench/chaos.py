"""Kill what can be killed under load, and account for every request. Linux.

    python -m service.bench.chaos [--only NAME]…

Real Ray Serve, HAProxy and HTTP; the synthetic runner, two replicas. Prints a table and fails when a request is
unexplained, when one fails that must not, or when the service does not come back.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import click
import httpx

from service.bench.outcomes import Ending, Outcome, complete
from service.bench.serving import RunningServer, running_server

NUM_REPLICAS = 2
NUM_CLIENTS = 16
BEFORE_S, AFTER_S = 2.0, 8.0
PAUSE_S = 3.0
MAX_TOKENS = 60
DEADLINE_S = 120.0
SETTINGS = (
    *("--runner", "synthetic", "--synthetic-cost", '{"base_s": 0.02}', "--data-plane", "haproxy"),
    *("--min-replicas", str(NUM_REPLICAS), "--max-replicas", str(NUM_REPLICAS), "--heartbeat-timeout-s", "5"),
)
REPLICA, HAPROXY, MANAGER = "ServeReplica:headcount", "bin/haproxy", "HAProxyManager"
CONTROLLER, BRAIN, FRONT = "ServeController", "ray::Brain", "ServeReplica:front"

Harm = Callable[[RunningServer], None]


def kill(mark: str, *, everyone: bool = False) -> Harm:
    """SIGKILL to one process of that kind, or to all."""

    def harm(server: RunningServer) -> None:
        victims = server.processes(mark)
        assert victims, f"no process is called {mark}"
        for pid in victims if everyone else victims[:1]:
            os.kill(pid, signal.SIGKILL)

    return harm


def pause(mark: str) -> Harm:
    """One process stands still for seconds: for it the clock jumps."""

    def harm(server: RunningServer) -> None:
        pid = server.processes(mark)[0]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE_S)
        os.kill(pid, signal.SIGCONT)

    return harm


def nothing(_: RunningServer) -> None:
    """Leave it in peace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is done, and who may fail of it: requests that had no answer yet, and streams that had begun."""

    name: str
    harm: Harm = nothing
    waiting_may_fail: bool = False
    begun_may_fail: bool = False
    faults: str = "{}"


SCENARIOS = (
    Scenario(name="nothing"),
    Scenario(name="a replica is killed", harm=kill(REPLICA), begun_may_fail=True),
    Scenario(name="all replicas are killed", harm=kill(REPLICA, everyone=True), begun_may_fail=True),
    Scenario(name=f"a replica stands still for {PAUSE_S:g} s", harm=pause(REPLICA)),
    Scenario(name="the brain is killed", harm=kill(BRAIN)),
    Scenario(name="the front is killed", harm=kill(FRONT)),
    Scenario(name="Serve's controller is killed", harm=kill(CONTROLLER)),
    Scenario(name="HAProxy is killed", harm=kill(HAPROXY), waiting_may_fail=True, begun_may_fail=True),
    Scenario(name="HAProxy's manager is killed", harm=kill(MANAGER), waiting_may_fail=True, begun_may_fail=True),
    Scenario(
        name="sequences and steps fail",
        faults='{"error": 0.05, "crash": 0.05, "stall": 0.05, "stall_s": 0.2}',
        waiting_may_fail=True,
        begun_may_fail=True,
    ),
    Scenario(name="a step never ends", faults='{"hang": 0.01}', begun_may_fail=True),
)


@dataclass(slots=True)
class Result:
    """What became of all requests of one scenario."""

    scenario: Scenario
    endings: list[Ending] = field(default_factory=list)
    back_s: float | None = None

    @property
    def num_waiting_failed(self) -> int:
        return sum(each.outcome is Outcome.FAILED and each.num_events == 0 for each in self.endings)

    @property
    def num_begun_failed(self) -> int:
        return sum(each.outcome is Outcome.FAILED and each.num_events > 0 for each in self.endings)

    def num(self, outcome: Outcome) -> int:
        return sum(each.outcome is outcome for each in self.endings)

    @property
    def is_good(self) -> bool:
        return (
            self.num(Outcome.UNEXPLAINED) == 0
            and self.back_s is not None
            and (self.scenario.waiting_may_fail or self.num_waiting_failed == 0)
            and (self.scenario.begun_may_fail or self.num_begun_failed == 0)
        )

    def row(self) -> str:
        numbers = [
            len(self.endings),
            self.num(Outcome.FINISHED),
            self.num(Outcome.REFUSED),
            self.num_waiting_failed,
            self.num_begun_failed,
            self.num(Outcome.UNEXPLAINED),
        ]
        back = "never" if self.back_s is None else f"{self.back_s:.1f} s"
        cells = [self.scenario.name, *map(str, numbers), back, "as it should be" if self.is_good else "NOT GOOD"]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| what happens | sent | finished | refused | failed before an answer | failed in a stream | unexplained |"
    " back after | |\n" + "|---" * 9 + "|"
)


class Trial:
    """One scenario on one server."""

    def __init__(self, server: RunningServer, scenario: Scenario) -> None:
        self._server = server
        self._result = Result(scenario)
        self._is_over = False
        self._random = random.Random(1)

    async def run(self) -> Result:
        url = f"http://127.0.0.1:{self._server.port}"
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False, limits=limits) as client:
            clients = [asyncio.create_task(self._load(client)) for _ in range(NUM_CLIENTS)]
            await asyncio.sleep(BEFORE_S)
            await asyncio.to_thread(self._result.scenario.harm, self._server)
            coming_back = asyncio.create_task(self._until_back(client))
            await asyncio.sleep(AFTER_S)
            await coming_back
            self._is_over = True
            await asyncio.gather(*clients)
        return self._result

    async def _load(self, client: httpx.AsyncClient) -> None:
        while not self._is_over:
            body = {
                "prompt": "Once upon a time",
                "max_tokens": self._random.randint(1, MAX_TOKENS),
                "stream": self._random.choice((False, True)),
            }
            ending = await complete(client, body)
            self._result.endings.append(ending)
            if ending.outcome is not Outcome.FINISHED:
                await asyncio.sleep(0.2)  # as a client would that is told to come back

    async def _until_back(self, client: httpx.AsyncClient) -> None:
        harmed_at = time.monotonic()
        while time.monotonic() < harmed_at + DEADLINE_S:
            ending = await complete(client, {"prompt": "a", "max_tokens": 1})
            if len(self._server.processes(REPLICA)) == NUM_REPLICAS and ending.outcome is Outcome.FINISHED:
                self._result.back_s = time.monotonic() - harmed_at
                return
            await asyncio.sleep(0.2)


@contextmanager
def _server(faults: str) -> Iterator[RunningServer]:
    with (
        tempfile.TemporaryDirectory() as state,
        running_server(*SETTINGS, "--synthetic-faults", faults, "--state-dir", state) as server,
    ):
        yield server


@click.command()
@click.option("--only", multiple=True, help="Names of scenarios, or parts of them; default: all.")
def main(only: tuple[str, ...]) -> None:
    """Kill what can be killed, under load."""
    chosen = [each for each in SCENARIOS if not only or any(word in each.name for word in only)]
    results: list[Result] = []
    click.echo(HEADER)
    for faults in dict.fromkeys(each.faults for each in chosen):
        with _server(faults) as server:
            for scenario in chosen:
                if scenario.faults == faults:
                    results.append(asyncio.run(Trial(server, scenario).run()))
                    click.echo(results[-1].row())
    for result in results:
        whys = Counter(f"{each.outcome}: {each.why}" for each in result.endings if each.why)
        if whys:
            click.echo(f"{result.scenario.name}: {dict(whys)}")
    if not all(result.is_good for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
