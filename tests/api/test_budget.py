"""How much an answer may hold, and how long its request may take to come."""

from __future__ import annotations

import pytest

from service.api.app import create_app
from service.api.intake import Intake
from service.errors import UnavailableError
from tests.api.fakes import CHAT, MESSAGES, Json, ScriptedBackend, make_state, post, serving
from tests.hostile import GOOD
from tests.raw_http import exchange

WIDE: Json = {"messages": MESSAGES, "n": 128, "max_tokens": 200, "logprobs": True, "top_logprobs": 20}


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 400), ({"top_logprobs": 10}, 503), ({"n": 64}, 503), ({"max_tokens": 100}, 503), ({"stream": True}, 503)],
)
async def test_alternatives_to_tokens_have_a_bound(changes: Json, status: int) -> None:
    """Choices × tokens × alternatives of an answer in one piece, though each is within its own limit; else the request
    gets as far as the backend, which is not there."""
    answer = await post(CHAT, {**WIDE, **changes}, ScriptedBackend(UnavailableError("Gone.")))

    assert answer.status_code == status
    assert answer.json()["error"]["param"] == ("logprobs" if status == 400 else None)


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    """408, and what it had brought does not count as held any more: there is room for exactly one."""
    backend = ScriptedBackend()
    async with serving(create_app(make_state(backend, intake=Intake(len(GOOD), body_timeout_s=0.2)))) as port:
        slow = await exchange(port, GOOD[:-1])
        answer = await exchange(port, GOOD)

    assert slow.status == 408
    assert b'"code":"request_timeout"' in slow.body
    assert answer.status == 200
