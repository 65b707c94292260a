"""How long a client waits, and what it is told when it was not long enough."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service.api.disconnect import while_read
from service.api.intake import Intake
from service.errors import OverloadedError, UnavailableError
from service.health import Health, HealthState
from service.types import FinishReason, GenerateRequest, SequenceTimings, TokenEvent
from tests.api.fakes import CHAT, COMPLETIONS, MESSAGES, Script, ScriptedBackend, client_of, in_turn, say, tokens

CHATTING = {"messages": MESSAGES}
COMPLETING = {"prompt": "hi"}


def times_out(*, is_begun: bool) -> Script:
    def script(request: GenerateRequest) -> Iterator[TokenEvent]:
        timings = SequenceTimings(arrival_at=100.0, scheduled_at=101.0 if is_begun else None)
        yield TokenEvent(request_id=request.request_id, finish_reason=FinishReason.TIMEOUT, timings=timings)

    return script


@pytest.mark.parametrize(("path", "body"), [(CHAT, CHATTING), (COMPLETIONS, COMPLETING)])
@pytest.mark.parametrize(
    ("header", "field", "deadline_at"),
    [(None, None, math.inf), ("2.5", None, 102.5), (None, 3, 103.0), ("2.5", 3, 102.5), ("30", 3.5, 103.5)],
)
async def test_the_earlier_of_header_and_field_is_the_deadline(
    path: str, body: dict[str, object], header: str | None, field: float | None, deadline_at: float
) -> None:
    """Counted from the arrival of the request."""
    backend = ScriptedBackend()
    headers = {} if header is None else {"X-Request-Timeout": header}
    async with client_of(backend) as client:
        answer = await client.post(path, json={**body, "timeout": field}, headers=headers)

    assert answer.status_code == 200
    assert [request.claim.deadline_at for request in backend.requests] == [deadline_at]


@pytest.mark.parametrize(
    ("header", "field", "param"),
    [
        *[(value, None, "X-Request-Timeout") for value in ("", "soon", "nan", "inf", "0", "-1", "1e9")],
        *[(None, value, "timeout") for value in (0, -1, 1e9)],
    ],
)
async def test_a_time_that_is_none_is_refused_by_name(header: str | None, field: float | None, param: str) -> None:
    """Whoever sent it learns where."""
    headers = {} if header is None else {"X-Request-Timeout": header}
    async with client_of(ScriptedBackend()) as client:
        answer = await client.post(CHAT, json={**CHATTING, "timeout": field}, headers=headers)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_what_was_not_begun_in_time_may_come_again() -> None:
    """A 429 with the time after which it would be begun, as if it had been refused at once."""
    backend = ScriptedBackend(times_out(is_begun=False))
    backend.status = Health(state=HealthState.OVERLOADED, reason="ok", wait_s=2.25)
    async with client_of(backend) as client:
        answer = await client.post(CHAT, json={**CHATTING, "stream": True})

    names = ("retry-after", "retry-after-ms", "x-should-retry")
    assert answer.status_code == 429
    assert [answer.headers[name] for name in names] == ["3", "2250", "true"]
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_begun_and_is_not_done_in_time_is_a_timeout(stream: bool) -> None:
    """Before the first token it is a status; another try would take as long."""
    async with client_of(ScriptedBackend(times_out(is_begun=True))) as client:
        answer = await client.post(CHAT, json={**CHATTING, "stream": stream})

    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert answer.headers["x-should-retry"] == "false"


async def test_a_stream_says_that_its_time_is_up() -> None:
    """An event with the code, and no end that looks like one."""
    backend = ScriptedBackend(in_turn(tokens(b"He"), times_out(is_begun=True)))
    async with client_of(backend) as client:
        answer = await client.post(CHAT, json={**CHATTING, "stream": True})

    assert answer.status_code == 200
    assert '"code": "timeout"' in answer.text.replace('":"', '": "')
    assert '"finish_reason":"' not in answer.text


@pytest.mark.parametrize(
    ("refusal", "status"),
    [(OverloadedError("Full.", retry_after_s=4.0), 429), (UnavailableError("Draining."), 503)],
)
async def test_where_there_is_no_room_nothing_is_read(refusal: OverloadedError | UnavailableError, status: int) -> None:
    """Not even a body that could not be understood."""
    backend = ScriptedBackend(say("never"))
    backend.refusal = refusal
    async with client_of(backend, intake=Intake(1)) as client:
        answer = await client.post(CHAT, content=b"{" * 1000)

    assert (answer.status_code, backend.requests) == (status, [])


async def test_a_client_that_reads_nothing_has_gone() -> None:
    """A write that is not taken in time ends the answer; one that is taken does not."""

    async def never(_: Message) -> None:
        await asyncio.Event().wait()

    async def at_once(_: Message) -> None:
        pass

    message = {"type": "http.response.body", "body": b"x"}
    await while_read(at_once, 60.0)(message)
    with pytest.raises(ClientDisconnect):
        await while_read(never, 0.001)(message)
