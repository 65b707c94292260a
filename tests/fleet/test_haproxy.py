"""What HAProxy makes of clients and replicas that go: Serve's own template, our variables, real processes, no Ray."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from service.fleet.haproxy import REPEATABLE_BYTES
from tests.fleet.haproxy_process import Fleet, running_fleet
from tests.fleet.server_process import STOP_DEADLINE_S, eventually
from tests.hostile import CASES, GOOD, Case
from tests.raw_http import exchange, post_bytes

pytestmark = pytest.mark.cluster

NUM_CLIENTS = 20
STEP_S = 0.05
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True}
SHORT: dict[str, Any] = {"prompt": "a", "max_tokens": 60, "ignore_eos": True}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("haproxy"), step_s=STEP_S) as running:
        yield running


async def until(fleet: Fleet, num_running: int) -> None:
    """Wait until so many requests run in the fleet."""
    await asyncio.to_thread(eventually, lambda: fleet.num_running() == num_running)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_gives_up_ends_its_request(fleet: Fleet, stream: bool) -> None:
    """Every one of twenty, though nothing was written to it yet: its replica stops computing."""
    async with httpx.AsyncClient(base_url=fleet.url, timeout=STOP_DEADLINE_S, trust_env=False) as client:
        posts = [
            asyncio.create_task(client.post("/v1/completions", json={**LONG, "stream": stream}))
            for _ in range(NUM_CLIENTS)
        ]
        await until(fleet, NUM_CLIENTS)
        for post in posts:
            post.cancel()
        await asyncio.gather(*posts, return_exceptions=True)
    await until(fleet, 0)


async def test_a_replica_that_dies_before_it_answers_is_nobodys_concern(fleet: Fleet) -> None:
    """Twenty requests, whose bodies come after their heads, on two replicas: one is killed, and all are answered."""
    victim = fleet.ports[0]
    body = json.dumps(SHORT).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    exchanges = [asyncio.create_task(exchange(fleet.port, head, body)) for _ in range(NUM_CLIENTS)]
    await until(fleet, NUM_CLIENTS)
    assert await asyncio.to_thread(fleet.num_running, victim) > 0

    await asyncio.to_thread(fleet.kill, victim)
    answers = [await each for each in exchanges]

    assert Counter(answer.status for answer in answers) == {200: NUM_CLIENTS}
    assert {json.loads(answer.body)["usage"]["completion_tokens"] for answer in answers} == {60}
    await asyncio.to_thread(fleet.revive, victim)


async def test_a_large_request_whose_replica_dies_is_told(fleet: Fleet) -> None:
    """HAProxy cannot ask again what does not fit into its buffer: the error is ours, on old connections too."""
    large = {**LONG, "user": "x" * 2 * REPEATABLE_BYTES}
    async with httpx.AsyncClient(base_url=fleet.url, timeout=STOP_DEADLINE_S, trust_env=False) as client:
        for _ in fleet.ports:  # by turns: each of them has answered on the connection that HAProxy might take again
            (await client.post("/v1/completions", json={**SHORT, "max_tokens": 1})).raise_for_status()
        asking = asyncio.create_task(client.post("/v1/completions", json=large))
        await until(fleet, 1)
        (victim,) = [port for port in fleet.ports if await asyncio.to_thread(fleet.num_running, port)]
        await asyncio.to_thread(fleet.kill, victim)
        answer = await asking
        await asyncio.to_thread(fleet.revive, victim)

    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert answer.headers["retry-after"] == "1"


def test_a_connection_carries_one_request(fleet: Fleet) -> None:
    """Or the process that a reload leaves behind would go on taking some, with weights that are out of date."""
    with httpx.Client(base_url=fleet.url, timeout=STOP_DEADLINE_S, trust_env=False) as client:
        assert client.get("/health/ready").headers["connection"] == "close"


def kill_and_read_on(fleet: Fleet, response: httpx.Response) -> list[str]:
    """The rest of a stream whose replica is killed; fails unless the client is told that it is not whole."""
    lines = response.iter_lines()
    got = [next(lines)]
    (victim,) = (port for port in fleet.ports if fleet.num_running(port))
    fleet.kill(victim)
    try:
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            got.extend(lines)
    finally:
        fleet.revive(victim)
    return got


def test_a_stream_that_is_cut_cannot_be_taken_for_a_whole_one(fleet: Fleet) -> None:
    """No `[DONE]`, no finish reason, and the transfer itself is not complete."""
    with (
        httpx.Client(base_url=fleet.url, timeout=STOP_DEADLINE_S, trust_env=False) as client,
        client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response,
    ):
        got = "\n".join(kill_and_read_on(fleet, response))
    assert "data: {" in got
    assert "[DONE]" not in got
    assert '"finish_reason":"' not in got


def test_the_openai_client_raises_where_a_stream_is_cut(fleet: Fleet) -> None:
    """It does not end its loop as if all were said."""
    client = openai.OpenAI(base_url=f"{fleet.url}/v1", api_key="none", timeout=STOP_DEADLINE_S)
    stream = client.completions.create(
        model="synthetic", prompt="a", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    (victim,) = (port for port in fleet.ports if fleet.num_running(port))
    fleet.kill(victim)
    with pytest.raises(openai.APIConnectionError):
        list(stream)
    fleet.revive(victim)


async def test_over_http_1_0_a_cut_stream_lacks_its_last_event(fleet: Fleet) -> None:
    """There the end of the connection is the end of the body: only `[DONE]` says that it is whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
    writer.write(post_bytes("/v1/completions", {**LONG, "stream": True}, version="1.0"))
    await reader.readuntil(b"data: ")
    (victim,) = [port for port in fleet.ports if await asyncio.to_thread(fleet.num_running, port)]
    await asyncio.to_thread(fleet.kill, victim)
    rest = await reader.read()
    writer.close()
    await asyncio.to_thread(fleet.revive, victim)

    assert b"[DONE]" not in rest


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_hostile_bytes(fleet: Fleet, case: Case) -> None:
    """The right status or none, and the next client is served."""
    answer = await exchange(fleet.port, *case.parts, half_close=case.half_close)

    assert answer.status in case.statuses
    assert (await exchange(fleet.port, GOOD)).status == 200


@pytest.mark.parametrize("size", [100, 200_000])
async def test_headers_have_a_bound(fleet: Fleet, size: int) -> None:
    """Of number and of size: HAProxy holds one buffer of them."""
    fields = f"X: {'a' * size}\r\n" if size > 100 else "".join(f"X{i}: 1\r\n" for i in range(size))
    answer = await exchange(fleet.port, post_bytes("/v1/completions", {}, headers=fields))

    assert answer.status in {400, None}
