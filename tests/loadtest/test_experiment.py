"""Whole runs against a scripted server: what is measured is what was scripted, whatever goes wrong."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from loadtest.workers import start_process
from tests.loadtest.running import run
from tests.loadtest.scripted import TEMPLATE_TOKENS, Reply, ScriptedServer, steady

# Stated error of a measured time on a busy two-core machine: the scripted delay, plus at most this.
ERROR_S = 0.25


async def test_measured_percentiles_are_the_scripted_ones() -> None:
    """TTFT, TPOT and E2E at p50 and p90 equal the script's within the stated error, and both sides count the same."""
    delays = [random.Random(number).uniform(0.05, 0.6) for number in range(40)]
    with ScriptedServer(lambda number: Reply(ttft_s=delays[number], gap_s=0.01)) as server:
        result, _ = await run(server, workload={"output_tokens": 5}, slo={"ttft_s": 5.0})

    latency = result.latency
    for quantile, level in ((latency.ttft_s.p50, 0.5), (latency.ttft_s.p90, 0.9)):
        assert quantile is not None
        assert 0 <= quantile.value - np.quantile(delays, level) < ERROR_S
    assert latency.tpot_s.p50 is not None
    assert 0.01 <= latency.tpot_s.p50.value < 0.01 + ERROR_S / 5
    assert latency.itl_s.count == 40 * 4
    assert [(row.what, row.client_low, row.server, row.agrees) for row in result.reconciliation] == [
        ("requests", 40, 40, True),
        ("prompt_tokens", 40 * 64, 40 * 64, True),
        ("output_tokens", 40 * 5, 40 * 5, True),
    ]
    assert result.goodput is not None
    assert (result.goodput.met, result.goodput.of, result.goodput.is_held) == (40, 40, True)
    assert result.tester.prompt_lengths_exact


async def test_a_stall_is_seen_by_an_open_loop_and_hidden_by_a_closed_one() -> None:
    """Coordinated omission: while a server freezes for a second, requests that come by the clock wait as scripted,
    and half of the run is slow; a closed loop waits with the server and sees one slow request in forty."""
    stall_start_s, stall_end_s = 0.5, 1.5
    with ScriptedServer(steady(Reply()), stall=(stall_start_s, stall_end_s)) as server:
        opened, records = await run(
            server,
            workload={"output_tokens": 1},
            arrivals={"kind": "constant", "rate_rps": 40, "duration_s": 2},
        )
    with ScriptedServer(steady(Reply(ttft_s=0.02)), stall=(0.2, 1.2)) as server:
        closed, _ = await run(
            server,
            workload={"output_tokens": 1},
            arrivals={"kind": "closed", "concurrency": 1, "num_requests": 40},
            num_workers=2,  # one more than there are clients: it must not swallow its share
        )

    since_first = np.array([record.intended_s - records[0].intended_s for record in records])
    is_stalled = (since_first > stall_start_s) & (since_first < stall_end_s)
    expected = np.where(is_stalled, stall_end_s - since_first, 0.0)
    error = np.abs(np.array([record.ttft_s for record in records], dtype=np.float64) - expected)
    # Those due as the stall begins may arrive on either side of it.
    assert np.all(error[np.abs(since_first - stall_start_s) > 0.1] < ERROR_S)
    assert opened.latency.ttft_s.p90 is not None
    assert closed.latency.ttft_s.p90 is not None
    assert opened.latency.ttft_s.p90.value > 0.7
    assert closed.latency.ttft_s.p90.value < 0.3
    assert (opened.schedule.loop, closed.schedule.loop) == ("open", "closed")
    assert "closed loop" in closed.verdict
    assert (closed.counts.ok, closed.schedule.num_workers) == (40, 1)


async def test_the_number_of_workers_changes_nothing_that_is_sent() -> None:
    """One worker or two: the same schedule, the same bodies, each once."""
    bodies = []
    hashes = []
    workload = {"prompt_tokens": {"kind": "uniform", "low": 5, "high": 40}, "output_tokens": 2}
    for num_workers in (1, 2):
        with ScriptedServer(steady(Reply())) as server:
            result, records = await run(server, num_workers=num_workers, start_worker=start_process, workload=workload)
            bodies.append(sorted(seen.body["messages"][0]["content"] for seen in server.seen))
            hashes.append(result.schedule.sha256)
            assert [record.index for record in records] == list(range(40))
            assert result.counts.ok == 40

    assert bodies[0] == bodies[1]
    assert hashes[0] == hashes[1]


async def test_conversations_carry_their_history_and_share_prefixes() -> None:
    """A later turn sends what was said, answers included; a failed turn ends its conversation."""
    workload = {
        "output_tokens": 2,
        "prompt_tokens": 30,
        "shared_prefix": {"groups": 1, "tokens": 10},
        "conversation": {"turns": 3, "think_s": 0.01},
    }
    with ScriptedServer(lambda number: Reply(fault="cut" if number == 0 else None)) as server:
        result, _ = await run(server, workload=workload, arrivals={"kind": "constant", "rate_rps": 5, "duration_s": 2})
        conversations = [seen.body["messages"] for seen in server.seen]

    assert (result.counts.planned, result.counts.ok, result.counts.failed, result.counts.skipped) == (30, 27, 1, 2)
    last = [messages for messages in conversations if len(messages) == 5]
    assert len(last) == 9
    assert [message["role"] for message in last[0]] == ["user", "assistant", "user", "assistant", "user"]
    assert last[0][1]["content"] == " 0 1"
    assert len({" ".join(messages[0]["content"].split()[:10]) for messages in conversations}) == 1


async def test_tenants_send_their_keys_and_are_measured_apart() -> None:
    """Each tenant's key is on its requests; the report has a row for each and no key."""
    tenants = [{"name": "a", "api_key": "key-a"}, {"name": "b", "api_key": "key-b"}]
    with ScriptedServer(steady(Reply())) as server:
        result, _ = await run(server, workload={"tenants": tenants, "output_tokens": 1})
        keys = {seen.headers["authorization"] for seen in server.seen}

    assert keys == {"Bearer key-a", "Bearer key-b"}
    assert [tenant.name for tenant in result.tenants] == ["a", "b"]
    assert result.fairness_jain == pytest.approx(1.0)
    assert "key-a" not in result.model_dump_json()


async def test_warm_up_is_sent_but_not_measured() -> None:
    """Requests of the first half second are slow, and not in the numbers."""
    with ScriptedServer(lambda number: Reply(ttft_s=2.0 if number < 8 else 0.0)) as server:
        result, records = await run(server, warmup_s=0.6)

    assert len(records) == 40
    assert result.counts.planned < 32
    assert result.latency.ttft_s.max is not None
    assert result.latency.ttft_s.max < 1.5
    assert result.reconciliation[0].agrees


async def test_prompts_from_a_file(tmp_path: Path) -> None:
    """Real prompts arrive as they are in the file; lengths are counted by the server."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one two three"}\n{"turns": ["four five", "six"]}\n')
    with ScriptedServer(steady(Reply())) as server:
        result, records = await run(server, workload={"prompts_file": str(path)})
        sent = {seen.body["messages"][0]["content"] for seen in server.seen}

    assert sent == {"one two three", "four five"}
    assert {record.prompt_tokens for record in records} == {3 + TEMPLATE_TOKENS, 2 + TEMPLATE_TOKENS}
    assert result.reconciliation[1].agrees


async def test_fleet_decisions_and_replicas_are_in_the_result() -> None:
    """What the server says of its replicas is sampled during the run, and its decisions are on the run's timeline."""
    with ScriptedServer(steady(Reply()), extras={"/fleet/decisions": [{"at": 0, "reason": "long ago"}]}) as server:
        result, _ = await run(server)

    assert {interval.replicas for interval in result.intervals} - {None} == {2.0}
    assert result.decisions == []
