"""Hostile bytes to the server that a replica runs: each gets an answer or an end, and nobody else notices."""

from __future__ import annotations

import pytest

from service.api.app import create_app
from tests.api.fakes import ScriptedBackend, make_state, serving
from tests.hostile import CASES, GOOD, Case
from tests.raw_http import exchange


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
async def test_hostile_bytes(case: Case) -> None:
    """The right status or none; no completion of half a request; and the next client is served."""
    backend = ScriptedBackend()
    async with serving(create_app(make_state(backend))) as port:
        answer = await exchange(port, *case.parts, half_close=case.half_close)
        num_served = len(backend.requests)
        next_answer = await exchange(port, GOOD)

    assert answer.status in case.statuses
    assert num_served <= case.num_served
    assert next_answer.status == 200
    assert sorted(backend.closed) == sorted(request.request_id for request in backend.requests)
