"""Whatever goes wrong in a run, at the server or at the tester, is told for what it is."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.errors import TargetError
from loadtest.experiment import Observer, Where, run_experiment
from loadtest.records import Outcome
from loadtest.scenario import parse_scenario
from loadtest.worker import Progress
from tests.loadtest.running import run
from tests.loadtest.scripted import Reply, ScriptedServer, steady


async def test_a_tester_that_cannot_send_in_time_says_so() -> None:
    """With two requests in flight at most, the others are dropped: the run is invalid, and they count as failures."""
    with ScriptedServer(steady(Reply(ttft_s=1.0))) as server:
        result, _ = await run(server, limits={"max_in_flight": 2}, slo={"ttft_s": 2})

    assert not result.validity.is_valid
    assert "max_in_flight" in " ".join(result.validity.reasons)
    assert result.verdict.startswith("INVALID RUN")
    assert result.goodput is not None
    assert not result.goodput.is_held


async def test_faults_are_told_apart_and_do_not_spread() -> None:
    """Cut, malformed, refused and failed requests are counted by kind; all others are complete."""
    faults = {3: "cut", 7: "malformed", 11: "error_event", 15: "refuse", 16: "refuse", 20: "hang_up"}
    script = {number: Reply(fault=fault, headers={"retry-after": "7"}) for number, fault in faults.items()}
    with ScriptedServer(lambda number: script.get(number, Reply())) as server:
        result, _ = await run(server)

    groups = {(group.outcome, group.status, group.code): group.count for group in result.errors}
    assert groups == {
        ("http", 429, "rate_limit_exceeded"): 2,
        ("cut", 200, None): 1,
        ("cut", None, None): 1,
        ("malformed", 200, None): 1,
        ("error_event", 200, "oom"): 1,
    }
    assert (result.counts.ok, result.counts.failed) == (34, 6)
    assert (result.retries.advised, result.retries.advice_p50_s, result.retries.retried) == (2, 7.0, 0)


async def test_retry_after_is_obeyed_and_its_worth_measured() -> None:
    """Refused once with advice, each comes back no sooner, and is admitted."""
    with ScriptedServer(
        lambda number: Reply(fault="refuse", headers={"retry-after-ms": "150"}) if number < 10 else Reply()
    ) as server:
        result, records = await run(server, limits={"max_retries": 3})

    assert result.counts.ok == 40
    assert result.retries.advised == result.retries.obeyed == result.retries.admitted > 0
    assert all((record.ttft_s or 0) >= 0.15 for record in records if record.attempts > 1)


async def test_a_server_that_miscounts_is_found_out() -> None:
    """Counters that do not match what the client received are reported as different."""
    with ScriptedServer(steady(Reply())) as server:
        server.counters["generation_tokens"] = 0

        class Cheat(Observer):
            def progress(self, worker: int, progress: Progress) -> None:
                server.counters["generation_tokens"] += 1

        result, _ = await run(server, observer=Cheat())

    agrees = {row.what: row.agrees for row in result.reconciliation}
    assert agrees == {"requests": True, "prompt_tokens": True, "output_tokens": False}


@pytest.mark.parametrize(("is_faithful", "equal"), [(True, 40), (False, 0)])
async def test_answers_are_repeated_alone(is_faithful: bool, equal: int) -> None:
    """With the same text every repetition is equal; with another, each is found and shown where it differs."""
    with ScriptedServer(lambda number: Reply(text_suffix="" if is_faithful or number < 40 else "!")) as server:
        result, _ = await run(server, verify_share=1.0)

    found = result.verification
    assert found is not None
    assert (found.checked, found.equal, found.failed) == (40, equal, 0)
    if not is_faithful:
        assert found.differences[0].alone.startswith(" 0!")
    # The repetitions are not part of what is reconciled.
    assert result.reconciliation[0].server == 40


async def test_stopping_reports_what_there_is() -> None:
    """A stop after the first answers ends an hour's run at once, marked partial, nothing lost and nothing invented."""
    stop = asyncio.Event()

    class StopSoon(Observer):
        def progress(self, worker: int, progress: Progress) -> None:
            if progress.sent >= 5:
                stop.set()

    with ScriptedServer(steady(Reply(ttft_s=0.01))) as server:
        result, records = await run(
            server,
            stop=stop,
            observer=StopSoon(),
            num_workers=2,
            arrivals={"kind": "constant", "rate_rps": 20, "duration_s": 3000},
        )

    assert result.validity.is_partial
    assert result.verdict.startswith("PARTIAL")
    assert 5 <= result.counts.ok <= len(records) < 1000
    assert result.counts.planned == 60_000
    assert result.counts.unfinished == 60_000 - len(records) + sum(r.outcome is Outcome.UNFINISHED for r in records)


async def test_no_server_is_refused_before_anything_starts() -> None:
    """Nothing listening: one sentence."""
    with ScriptedServer(steady(Reply())) as server:
        url = server.url
    scenario = parse_scenario({"arrivals": {"kind": "constant", "rate_rps": 1, "duration_s": 1}})

    with pytest.raises(TargetError, match="Is it started"):
        await run_experiment(scenario, Where(url=url), num_workers=1, observer=Observer(), stop=asyncio.Event())


async def test_disconnects_are_planned_and_reconciled() -> None:
    """A share of clients leaves in mid-stream: they are no failures, and the counts allow for what they cost."""
    with ScriptedServer(steady(Reply(gap_s=0.02))) as server:
        result, records = await run(
            server, workload={"output_tokens": 30, "disconnect": {"share": 0.5, "after_s": 0.3}}, slo={"ttft_s": 3}
        )

    assert result.counts.disconnected > 5
    assert result.counts.failed == 0
    assert result.goodput is not None
    assert result.goodput.of == result.counts.ok
    assert all(r.num_events < 30 for r in records if r.outcome is Outcome.DISCONNECTED)
    assert [row.agrees for row in result.reconciliation] == [True, True, True]
