"""Thousands of mixed requests, many of whose clients leave: does memory stay flat, do the books balance? Linux.

    python -m service.bench.long_life [--requests 10000] [--runner model]

One real replica behind HAProxy. Prints the replica's memory after each tenth, when it is idle, and what does not add
up.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from service.bench.outcomes import Ending, Outcome, complete
from service.bench.serving import running_server

NUM_CLIENTS = 16
MAX_TOKENS = 16
MAX_PROMPT_WORDS = 60
DEADLINE_S = 300.0
LEAVING = 0.2  # share of the clients that leave in mid-stream, and of those that give up on a whole answer
MIB = 1024  # KiB
REPLICA = "ServeReplica:headcount"
COST = json.dumps({"base_s": 0.002})
_SERIES = re.compile(r"^(\S+?)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What the server says of itself: counters since its start, gauges now."""

    num_whole: float
    num_aborted: float
    num_failed: float
    num_output_tokens: float
    num_running: float
    num_waiting: float
    kv_usage: float

    @classmethod
    def of(cls, metrics: str) -> Books:
        """From Prometheus' text format, summed over replicas."""
        ends: defaultdict[str, float] = defaultdict(float)
        totals: defaultdict[str, float] = defaultdict(float)
        for name, labels, value in _SERIES.findall(metrics):
            totals[name] += float(value)
            reason = re.search(r'finished_reason="(\w+)"', labels)
            if name == "vllm:request_success_total" and reason:
                ends[reason.group(1)] += float(value)
        return cls(
            num_whole=ends["length"] + ends["stop"],
            num_aborted=ends["abort"],
            num_failed=ends["error"],
            num_output_tokens=totals["vllm:generation_tokens_total"],
            num_running=totals["vllm:num_requests_running"],
            num_waiting=totals["vllm:num_requests_waiting"],
            kv_usage=totals["vllm:kv_cache_usage_perc"],
        )

    @property
    def is_idle(self) -> bool:
        return self.num_running == self.num_waiting == self.kv_usage == 0


def complaints(endings: Sequence[Ending], before: Books, after: Books) -> Iterable[str]:
    """What does not add up between the clients' accounts and the server's. Who left may be either whole or aborted."""
    count = Counter(each.outcome for each in endings)
    whole, left = count[Outcome.FINISHED], count[Outcome.LEFT]
    tokens = sum(each.num_tokens for each in endings)
    checks = {
        "nothing is unexplained": count[Outcome.UNEXPLAINED] == 0,
        "nothing failed": after.num_failed == before.num_failed,
        "whatever the client got whole, the server ended": after.num_whole - before.num_whole >= whole,
        "the server ended no more than was asked": (
            after.num_whole + after.num_aborted - before.num_whole - before.num_aborted <= whole + left
        ),
        "the server made the tokens that the clients got": (
            tokens <= after.num_output_tokens - before.num_output_tokens <= tokens + left * MAX_TOKENS
        ),
        "nothing runs, waits or holds blocks": after.is_idle,
    }
    return [rule for rule, holds in checks.items() if not holds]


class Life:
    """Clients that send one request after the other, of all kinds."""

    def __init__(self, client: httpx.AsyncClient, seed: int = 0) -> None:
        self._client = client
        self._random = random.Random(seed)
        self.endings: list[Ending] = []

    async def live(self, num_requests: int) -> None:
        """Send so many, and wait until the server has nothing to do."""
        left = iter(range(num_requests))
        await asyncio.gather(*[self._one_after_the_other(left) for _ in range(NUM_CLIENTS)])
        async with asyncio.timeout(DEADLINE_S):
            while not (await self.books()).is_idle:  # noqa: ASYNC110 - of the server, which tells nobody
                await asyncio.sleep(0.1)

    async def books(self) -> Books:
        return Books.of((await self._client.get("/metrics")).text)

    async def _one_after_the_other(self, left: Iterable[int]) -> None:
        for _ in left:
            self.endings.append(await self._one())

    async def _one(self) -> Ending:
        draw = self._random.random
        body: dict[str, Any] = {
            "prompt": "so it goes " * self._random.randint(1, MAX_PROMPT_WORDS),
            "max_tokens": self._random.randint(1, MAX_TOKENS),
            "stream": self._random.choice((False, True)),
            "temperature": self._random.choice((0.0, 0.8)),
            "logprobs": self._random.choice((None, 0, 3)),
        }
        if draw() < LEAVING / 2:
            body["temperature"] = -1.0  # a mistake, to be refused
        if draw() > LEAVING:
            return await complete(self._client, body)
        if body["stream"]:
            return await complete(self._client, body, leave_after=self._random.randint(1, MAX_TOKENS))
        try:
            return await asyncio.wait_for(complete(self._client, body), draw() / 4)
        except TimeoutError:
            return Ending(Outcome.LEFT)


def resident_mib(pid: int) -> float:
    """Memory of a process, without what it maps from files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / MIB


async def _watch(port: int, pid: int, num_requests: int) -> list[str]:
    limits = httpx.Limits(max_connections=None)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False, limits=limits) as client:
        life = Life(client)
        before = await life.books()
        for tenth in range(1, 11):
            began_at = time.monotonic()
            await life.live(num_requests // 10)
            count = Counter(str(each.outcome) for each in life.endings)
            click.echo(
                f"{tenth * num_requests // 10:6} requests, {resident_mib(pid):7.1f} MiB, "
                f"{num_requests / 10 / (time.monotonic() - began_at):.0f} requests/s, {dict(count)}"
            )
        return list(complaints(life.endings, before, await life.books()))


@click.command()
@click.option("--requests", "num_requests", default=10_000)
@click.option("--runner", type=click.Choice(["model", "synthetic"]), default="model")
def main(num_requests: int, runner: str) -> None:
    """A long life, quickly."""
    flags = ("--runner", runner, "--synthetic-cost", COST, "--threads", "1", "--kv-cache-gib", "0.25")
    with tempfile.TemporaryDirectory() as state, running_server(*flags, "--state-dir", state) as server:
        (pid,) = server.processes(REPLICA)
        found = asyncio.run(_watch(server.port, pid, num_requests))
    click.echo("the books balance" if not found else f"it is false that {'; '.join(found)}")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
