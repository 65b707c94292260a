"""What happens to a request is written down as what it was, with the instants at which it happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest

from loadtest.client import Client, Endpoint, Patience, Timeline, retry_after_s
from loadtest.histogram import GapHistogram
from loadtest.records import Outcome, Record
from loadtest.transport import StreamTransport
from tests.loadtest.scripted import Reply, Script, ScriptedServer, steady

PATIENT = Patience(10, Outcome.DEADLINE)
SLACK_S = 0.4  # most that a busy machine may add to a scripted delay


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[Client]:
    endpoint = Endpoint(url=url, model="m", api="chat", ignore_eos=True, extra_body={})
    async with httpx.AsyncClient(transport=StreamTransport(), trust_env=False) as http:
        yield Client(http, endpoint, Timeline(time.monotonic()), GapHistogram(1))


async def _send(
    client: Client, *, patience: Patience = PATIENT, max_retries: int = 0, tokens: int = 6
) -> tuple[Record, str]:
    now_s = client.timeline.now_s()
    record = Record(index=0, tenant="t", conversation=0, turn=0, intended_s=now_s, planned_output_tokens=tokens)
    body = client.endpoint.body([{"role": "user", "content": "time people way"}], tokens)
    text = await client.send(record, body, api_key="secret", patience=patience, max_retries=max_retries)
    return record, text


async def _once(script: Script, **options: object) -> Record:
    with ScriptedServer(script) as server:
        async with _client(server.url) as client:
            record, _ = await _send(client, **options)  # type: ignore[arg-type]
            return record


async def test_a_whole_stream_is_measured() -> None:
    """Delays are the scripted ones, tokens are counted, usage is read, the text is what was streamed."""
    with ScriptedServer(steady(Reply(ttft_s=0.1, gap_s=0.02))) as server:
        async with _client(server.url) as client:
            record, text = await _send(client)
        seen = server.seen[0]

    assert record.outcome is Outcome.OK
    assert (record.output_tokens, record.num_events, record.prompt_tokens) == (6, 6, 7)
    assert text == " 0 1 2 3 4 5"
    assert record.ttft_s is not None
    assert 0.1 <= record.ttft_s < 0.1 + SLACK_S
    assert record.tpot_s is not None
    assert 0.02 <= record.tpot_s < 0.02 + SLACK_S
    assert seen.headers["authorization"] == "Bearer secret"
    assert (seen.body["stream"], seen.body["temperature"], seen.body["ignore_eos"]) == (True, 0, True)


@pytest.mark.parametrize(
    ("fault", "outcome", "code"),
    [
        ("cut", Outcome.CUT, None),
        ("hang_up", Outcome.CUT, None),
        ("no_done", Outcome.CUT, None),
        ("malformed", Outcome.MALFORMED, None),
        ("garbage", Outcome.MALFORMED, None),
        ("error_event", Outcome.ERROR_EVENT, "oom"),
        ("refuse", Outcome.HTTP, "rate_limit_exceeded"),
    ],
)
async def test_faults_have_names(fault: str, outcome: Outcome, code: str | None) -> None:
    """Each way to fail is told from the others, and never raised."""
    record = await _once(steady(Reply(fault=fault)))

    assert (record.outcome, record.code) == (outcome, code)
    assert record.message
    assert record.end_s is not None


async def test_no_server_is_a_connect_failure() -> None:
    """A refused connection is the network's fault, and measured."""
    async with _client("http://127.0.0.1:9") as client:
        record, _ = await _send(client)

    assert record.outcome is Outcome.CONNECT


@pytest.mark.parametrize("ends", [Outcome.DISCONNECTED, Outcome.DEADLINE])
async def test_patience_ends_the_request(ends: Outcome) -> None:
    """A planned disconnect or a deadline closes the stream and keeps what had come."""
    record = await _once(steady(Reply(gap_s=0.05)), patience=Patience(0.3, ends), tokens=1000)

    assert record.outcome is ends
    assert 0 < record.num_events < 1000
    assert record.end_s is not None
    assert 0.3 <= record.end_s < 0.3 + SLACK_S


async def test_retry_after_is_obeyed() -> None:
    """A refusal with advice is tried again, no sooner than told, and its latency counts from the first intention."""
    record = await _once(
        lambda number: Reply(fault="refuse", headers={"retry-after": "0.2"}) if number == 0 else Reply(), max_retries=2
    )

    assert (record.outcome, record.attempts, record.retry_after_s) == (Outcome.OK, 2, 0.2)
    assert record.retry_slack_s is not None
    assert record.retry_slack_s >= 0
    assert record.ttft_s is not None
    assert record.ttft_s >= 0.2


async def test_retries_end() -> None:
    """After the last allowed retry the refusal stands; without advice there is no retry at all."""
    refused = await _once(steady(Reply(fault="refuse", headers={"retry-after": "0.01"})), max_retries=2)
    unadvised = await _once(steady(Reply(fault="refuse")), max_retries=2)

    assert (refused.outcome, refused.status, refused.attempts) == (Outcome.HTTP, 429, 3)
    assert (unadvised.attempts, unadvised.retry_after_s) == (1, None)


async def test_a_cancelled_send_is_unfinished() -> None:
    """Stopping the run leaves a record that says so."""
    with ScriptedServer(steady(Reply(ttft_s=30))) as server:
        async with _client(server.url) as client:
            record = Record(index=0, tenant="t", conversation=0, turn=0, intended_s=0, planned_output_tokens=1)
            body = client.endpoint.body([{"role": "user", "content": "x"}], 1)
            task = asyncio.create_task(client.send(record, body, api_key=None, patience=Patience(60, Outcome.DEADLINE)))
            await asyncio.to_thread(server.has_been_asked.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    assert record.outcome is Outcome.UNFINISHED


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "Wed, 25 Nov 2026 12:00:10 GMT"}, 10.0),
        ({"retry-after": "Wed, 25 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({}, None),
    ],
)
def test_retry_after_forms(headers: dict[str, str], expected: float | None) -> None:
    """Milliseconds, seconds and dates are understood; nonsense is no advice."""
    now = datetime(2026, 11, 25, 12, 0, 0, tzinfo=UTC)

    assert retry_after_s(httpx.Headers(headers), lambda: now) == expected


def test_completions_send_a_prompt() -> None:
    """The completions API gets text, the extension is left out when not wanted, extra fields are merged."""
    endpoint = Endpoint(url="http://h", model="m", api="completions", ignore_eos=False, extra_body={"top_k": 1})
    body = endpoint.body([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], 3)

    assert endpoint.path == "http://h/v1/completions"
    assert b'"prompt": "a\\nb"' in body
    assert b'"top_k": 1' in body
    assert b"ignore_eos" not in body
