"""Hundreds of requests of all kinds, a fifth of whose clients leave: nothing is left, and the books balance."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.bench.long_life import Life, complaints
from service.bench.outcomes import Outcome
from tests.fleet.haproxy_process import running_fleet
from tests.fleet.server_process import STOP_DEADLINE_S


@pytest.mark.cluster
async def test_a_life_in_short(tmp_path: Path) -> None:
    """`python -m service.bench.long_life` is the long version."""
    with running_fleet(tmp_path, step_s=0.002, num_replicas=1) as fleet:
        async with httpx.AsyncClient(base_url=fleet.url, timeout=STOP_DEADLINE_S, trust_env=False) as client:
            life = Life(client)
            before = await life.books()
            await life.live(300)
            after = await life.books()

    assert complaints(life.endings, before, after) == []
    outcomes = [each.outcome for each in life.endings]
    assert len(outcomes) == 300
    assert min(outcomes.count(each) for each in (Outcome.FINISHED, Outcome.LEFT, Outcome.FAILED)) > 5
