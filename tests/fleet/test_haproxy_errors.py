"""Clients that are slow or too early, at HAProxy: short deadlines, one replica, no Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from service.fleet.haproxy import REQUEST_TIMEOUT_S, balance_and_more
from tests.fleet.haproxy_process import Fleet, running_fleet
from tests.fleet.server_process import eventually
from tests.hostile import GOOD
from tests.raw_http import Answer, exchange, post_bytes

pytestmark = pytest.mark.cluster

NUM_CHOICES = 64


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Its deadlines are two seconds instead of a minute."""
    changes = {
        "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": balance_and_more().replace(f"{REQUEST_TIMEOUT_S}s", "2s"),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "2",
    }
    with running_fleet(tmp_path_factory.mktemp("haproxy"), step_s=0.001, num_replicas=1, **changes) as running:
        yield running


def error_of(answer: Answer) -> dict[str, str | None]:
    """The error in our envelope, which has all four keys."""
    error: dict[str, str | None] = json.loads(answer.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_a_head_that_does_not_come_is_not_waited_for(fleet: Fleet) -> None:
    """A connection that sends a byte now and then is closed in the end."""
    assert (await exchange(fleet.port, GOOD[:20])).status in {408, None}


async def test_a_body_that_does_not_come_is_not_waited_for(fleet: Fleet) -> None:
    """The client gets our envelope, and no replica has been bothered."""
    answer = await exchange(fleet.port, GOOD[:-3])

    assert answer.status == 408
    assert error_of(answer)["code"] == "request_timeout"


async def test_a_reader_that_takes_nothing_is_left(fleet: Fleet) -> None:
    """Its connection is closed, and its sequences are aborted long before they are done."""
    body = {"prompt": "a", "n": NUM_CHOICES, "max_tokens": 8000, "ignore_eos": True, "stream": True}
    before = fleet.series("vllm:generation_tokens_total")
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port, limit=1)
    writer.write(post_bytes("/v1/completions", body))
    await asyncio.to_thread(eventually, lambda: fleet.num_running() == NUM_CHOICES)
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.to_thread(eventually, lambda: fleet.num_running() == 0)
    writer.transport.abort()

    assert fleet.series("vllm:generation_tokens_total") - before < NUM_CHOICES * 8000


async def test_without_a_replica_the_error_is_ours_and_says_when_to_come_back(fleet: Fleet) -> None:
    """Not HAProxy's page, and not Serve's 500."""
    (port,) = fleet.ports
    await asyncio.to_thread(fleet.kill, port)
    answers = [await exchange(fleet.port, GOOD) for _ in range(2)]
    await asyncio.to_thread(fleet.revive, port)

    for answer in answers:
        assert answer.status == 503
        assert error_of(answer)["code"] == "service_unavailable"
        assert b"retry-after: 1" in answer.head
