"""The engine thread drains, hangs, and dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.engine.config import EngineConfig, LoopConfig
from service.engine.core import EngineCore
from service.engine.loop import EngineBackend
from service.errors import UnavailableError
from service.types import FinishReason, StepStats
from tests.engine.fakes import BOMB, FakeClock, HistoryRunner, expected_output, request
from tests.engine.serving import LONG, GatedRunner, Observed, read, serving, tokens, wait_until_stopping


class TestDrain:
    async def test_draining_finishes_what_is_accepted_and_refuses_the_rest(self) -> None:
        """Running and waiting requests get all their tokens; the thread ends."""
        runner = GatedRunner()
        async with serving(runner) as backend:
            streams = [backend.generate(request(i, max_tokens=5)) for i in range(4)]
            draining = asyncio.ensure_future(backend.drain(60.0))
            await asyncio.sleep(0)
            with pytest.raises(UnavailableError, match="draining"):
                backend.generate(request(9))
            health = backend.health()
            runner.free_run()
            results = [await read(stream) for stream in streams]

            assert await draining
        assert (health.alive, health.ready) == (True, False)
        assert [tokens(events) for events in results] == [expected_output((i,), 5) for i in range(4)]

    async def test_what_does_not_finish_in_time_is_aborted(self) -> None:
        """The reader is told, and the drain says that it was cut short."""
        runner = GatedRunner()
        async with serving(runner) as backend:
            stream = backend.generate(request(1, max_tokens=LONG))
            await runner.wait_until_entered()
            draining = asyncio.ensure_future(backend.drain(0.0))
            await asyncio.to_thread(wait_until_stopping, backend)
            runner.permits.release()
            [*_, last] = await read(stream)
            runner.free_run()

            assert not await draining
        assert last.finish_reason is FinishReason.ABORT
        assert last.error == "The server is shutting down."

    async def test_an_idle_engine_drains_at_once(self) -> None:
        """Nothing to wait for."""
        async with serving(HistoryRunner()) as backend:
            assert await backend.drain(0.0)
            assert not backend.health().ready

    async def test_a_step_that_hangs_does_not_hang_the_shutdown(self) -> None:
        """Its readers are told all the same, and what the step brings when it comes back is ignored."""
        runner = GatedRunner()
        async with serving(runner) as backend:
            stream = backend.generate(request(1, max_tokens=LONG))
            await runner.wait_until_entered()
            await asyncio.to_thread(backend.close, 0.0)

            assert [event.finish_reason for event in await read(stream)] == [FinishReason.ABORT]


class TestHealth:
    async def test_a_step_that_hangs_is_not_alive(self) -> None:
        """Silence beyond the limit is death, up to it is work; when the step ends the engine is alive again."""
        runner, clock = GatedRunner(), FakeClock()
        async with serving(runner, clock=clock, heartbeat_timeout_s=10.0) as backend:
            stream = backend.generate(request(1, max_tokens=2))
            await runner.wait_until_entered()
            clock.now += 10.0
            at_limit = backend.health()
            clock.now += 1.0
            beyond = backend.health()
            runner.free_run()
            await read(stream)
            after = backend.health()

        assert (at_limit.alive, at_limit.ready, at_limit.heartbeat_age_s) == (True, True, 10.0)
        assert (beyond.alive, beyond.ready) == (False, False)
        assert "11 s" in beyond.reason
        assert (after.alive, after.ready, after.reason) == (True, True, "ok")

    async def test_idle_is_alive(self) -> None:
        """However long nothing happens, from the moment when the thread has gone to sleep."""
        clock = FakeClock()
        async with serving(HistoryRunner(), clock=clock) as backend:
            await read(backend.generate(request(1)))
            clock.now += 1e6
            async with asyncio.timeout(60):
                while backend.health().heartbeat_age_s > 0:  # noqa: ASYNC110  falling asleep tells nobody
                    await asyncio.sleep(0)

            assert backend.health().alive

    async def test_stopped_is_neither_ready_nor_hanging(self) -> None:
        """A drained replica is not killed for being silent."""
        clock = FakeClock()
        async with serving(HistoryRunner(), clock=clock) as backend:
            await read(backend.generate(request(1)))
            await backend.drain(60.0)
            clock.now += 1e6

            assert (backend.health().alive, backend.health().ready) == (True, False)

    async def test_work_that_is_not_taken_up_counts_as_silence(self) -> None:
        """A command that nobody runs ages like a step that hangs."""
        clock = FakeClock()
        core = EngineCore(HistoryRunner(), EngineConfig(), clock)
        backend = EngineBackend(core, LoopConfig(heartbeat_timeout_s=10.0), clock=clock)
        backend._refusal = None  # as if started, by a thread that never gets to run
        stream = backend.generate(request(1))
        clock.now += 11.0

        assert not backend.health().alive
        await stream.aclose()

    async def test_it_counts_who_runs_and_who_waits(self) -> None:
        """Two places, five requests."""
        runner = GatedRunner()
        async with serving(runner) as backend:
            streams = [backend.generate(request(i, max_tokens=2)) for i in range(5)]
            await runner.wait_until_entered()
            runner.permits.release()
            await anext(streams[0])
            await runner.wait_until_entered()  # the figures of the first step are in
            health = backend.health()

        assert (health.num_running, health.num_waiting) == (2, 3)

    async def test_before_the_start_nothing_is_admitted(self) -> None:
        """Alive, not ready."""
        core = EngineCore(HistoryRunner(), EngineConfig(), FakeClock())
        backend = EngineBackend(core, LoopConfig())

        assert (backend.health().alive, backend.health().ready) == (True, False)
        with pytest.raises(UnavailableError):
            backend.generate(request(1))
        backend.close()


class BrokenCore(EngineCore):
    """A core with a bug: the third step raises."""

    num_steps = 0

    def _report(self, duration_s: float) -> Any:
        self.num_steps += 1
        if self.num_steps == 3:
            raise RuntimeError("a bug")
        return super()._report(duration_s)


class LeakyCore(EngineCore):
    """A core whose books do not balance."""

    def check_integrity(self) -> None:
        raise RuntimeError("blocks are missing")


class TestFaults:
    async def test_a_failed_step_ends_its_requests_and_the_engine_serves_on(self) -> None:
        """An exception of the model is an error event, not the end of the service."""
        async with serving(HistoryRunner()) as backend:
            bad = await read(backend.generate(request(1, BOMB)))
            good = await read(backend.generate(request(1, 2)))

            assert backend.health().alive
        assert [event.finish_reason for event in bad] == [FinishReason.ERROR]
        assert tokens(good) == expected_output((1, 2), 4)

    async def test_a_bug_in_the_core_ends_every_request_once(self) -> None:
        """Running or waiting, each gets one terminal event; then the engine is dead and refuses."""
        runner = GatedRunner()
        async with serving(runner, core_type=BrokenCore) as backend:
            streams = [backend.generate(request(i, n=2, max_tokens=LONG)) for i in range(3)]
            runner.free_run()
            results = [await read(stream) for stream in streams]

            for events in results:
                ends = [(event.index, event.finish_reason) for event in events if event.finish_reason]
                assert sorted(ends) == [(0, FinishReason.ERROR), (1, FinishReason.ERROR)]
            assert not backend.health().alive
            with pytest.raises(UnavailableError, match="restarted"):
                backend.generate(request(1))
            assert not await backend.drain(60.0)

    async def test_books_that_do_not_balance_stop_the_engine(self) -> None:
        """They are checked whenever the engine gets idle; going on could mix up requests."""
        async with serving(HistoryRunner(), core_type=LeakyCore) as backend:
            await read(backend.generate(request(1)))
            await backend.drain(60.0)

            assert not backend.health().alive

    async def test_an_observer_that_fails_is_no_business_of_the_engine(self, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged once, and everything is served."""

        def broken(_: StepStats) -> None:
            raise ValueError("metrics are full")

        async with serving(HistoryRunner(), observer=broken) as backend:
            events = await read(backend.generate(request(1)))

            assert backend.health().alive
        assert tokens(events) == expected_output((1,), 4)
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    async def test_the_engine_sleeps_when_there_is_nothing_to_do(self) -> None:
        """No step without work: it is woken, it does not poll."""
        observed = Observed()
        runner = HistoryRunner()
        async with serving(runner, observer=observed) as backend:
            await read(backend.generate(request(1, max_tokens=3)))
            await read(backend.generate(request(2, max_tokens=3)))

        assert len(observed.steps) == len(runner.batches) == 6
