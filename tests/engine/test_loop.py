"""The engine thread and its asyncio side: admission, cancellation, draining, hanging, dying."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeVarTuple, Unpack

import pytest

from service.backend import Backend, TokenStream
from service.engine.batch import Batch
from service.engine.core import EngineConfig, EngineCore
from service.engine.loop import EngineBackend, LoopConfig
from service.engine.runner_protocol import SequenceResult
from service.errors import ConfigError, ContextLengthError, InvalidRequestError, OverloadedError, UnavailableError
from service.types import FinishReason, StepStats, TokenEvent
from tests.engine.fakes import BOMB, FakeClock, HistoryRunner, expected_output, request

Args = TypeVarTuple("Args")
LONG = 50  # tokens: so many steps that a request is surely still running


@dataclass(kw_only=True)
class GatedRunner(HistoryRunner):
    """Computes a step for each `permits.release()`; `free_run` opens the gate for good."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    is_free: bool = False
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def execute(self, batch: Batch) -> list[SequenceResult]:
        self.entered.release()
        if not self.is_free:
            self.permits.acquire()
        return super().execute(batch)

    def free_run(self) -> None:
        self.is_free = True
        self.permits.release()

    async def wait_until_entered(self) -> None:
        """The engine is inside a step."""
        await asyncio.to_thread(self.entered.acquire)


@dataclass
class Observed:
    """Every step's stats; `wait_for` returns when one satisfies a condition."""

    steps: list[StepStats] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, stats: StepStats) -> None:
        with self.changed:
            self.steps.append(stats)
            self.changed.notify_all()

    async def wait_for(self, condition: Callable[[StepStats], bool]) -> None:
        def wait() -> None:
            with self.changed:
                self.changed.wait_for(lambda: any(condition(stats) for stats in self.steps))

        await asyncio.to_thread(wait)


@asynccontextmanager
async def serving(
    runner: HistoryRunner,
    *,
    observer: Callable[[StepStats], None] | None = None,
    clock: FakeClock | None = None,
    core_type: type[EngineCore] = EngineCore,
    **limits: Any,
) -> AsyncIterator[EngineBackend]:
    """A started backend of 2 running sequences, closed at the end."""
    clock = clock or FakeClock()
    core = core_type(runner, EngineConfig(max_num_seqs=2, max_num_batched_tokens=16), clock)
    backend = EngineBackend(core, LoopConfig(**limits), observer=observer, clock=clock)
    backend.start()
    try:
        yield backend
    finally:
        if isinstance(runner, GatedRunner):
            runner.free_run()
        await asyncio.to_thread(backend.close)


def wait_until_stopping(backend: EngineBackend) -> None:
    with backend._changed:
        backend._changed.wait_for(lambda: backend._is_stopping)


async def read(stream: TokenStream) -> list[TokenEvent]:
    return [event async for event in stream]


def tokens(events: list[TokenEvent]) -> tuple[int, ...]:
    return tuple(token_id for event in events for token_id in event.token_ids)


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often the engine thread calls."""

    num_calls = 0

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Args]], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        self.num_calls += threading.current_thread().name == "engine"
        return super().call_soon_threadsafe(callback, *args, context=context)


class TestGenerate:
    async def test_concurrent_requests_get_their_own_tokens(self) -> None:
        """Twenty at once through two slots, each as if alone, in exactly one terminal event."""
        async with serving(HistoryRunner()) as backend:
            requests = [request(i, i + 1, max_tokens=5) for i in range(20)]
            results = await asyncio.gather(*(read(backend.generate(each)) for each in requests))

        for each, events in zip(requests, results, strict=True):
            assert tokens(events) == expected_output(each.prompt_token_ids, 5)
            assert [event.finish_reason for event in events if event.finish_reason] == [FinishReason.LENGTH]

    async def test_it_is_a_backend(self) -> None:
        """The limits are those of the core."""
        async with serving(HistoryRunner(max_model_len=20)) as engine_backend:
            backend: Backend = engine_backend

            assert (backend.max_model_len, backend.vocab_size) == (20, 50)

    async def test_what_cannot_be_served_is_refused_before_there_is_a_stream(self) -> None:
        """Admission is synchronous, so that the client gets a status and not a broken stream."""
        async with serving(HistoryRunner(max_model_len=8)) as backend:
            with pytest.raises(ContextLengthError):
                backend.generate(request(1, 2, max_tokens=7))

    async def test_a_duplicate_id_is_refused_and_the_first_is_served(self) -> None:
        """It cannot take the engine down."""
        runner = GatedRunner()
        async with serving(runner) as backend:
            first = backend.generate(request(1, request_id="x"))
            with pytest.raises(InvalidRequestError):
                backend.generate(request(2, request_id="x"))
            runner.free_run()
            assert tokens(await read(first)) == expected_output((1,), 4)

            assert tokens(await read(backend.generate(request(2, request_id="x")))) == expected_output((2,), 4)

    def test_one_callback_per_step_for_all_streams(self) -> None:
        """The event loop is not called once per token."""
        runner = GatedRunner()

        async def ask() -> None:
            async with serving(runner) as backend:
                streams = [backend.generate(request(i, max_tokens=3)) for i in range(2)]
                runner.free_run()
                for stream in streams:
                    await read(stream)

        with asyncio.Runner(loop_factory=CountingLoop) as asyncio_runner:
            asyncio_runner.run(ask())
            loop = asyncio_runner.get_loop()

        assert isinstance(loop, CountingLoop)
        assert loop.num_calls == len(runner.batches)

    def test_each_event_loop_gets_its_own_events(self) -> None:
        """A backend outlives the loop of one caller: the next `asyncio.run` is served as well."""
        core = EngineCore(HistoryRunner(), EngineConfig(), FakeClock())
        backend = EngineBackend(core, LoopConfig())
        backend.start()

        async def abandon() -> TokenStream:
            return backend.generate(request(1, max_tokens=LONG))

        async def ask() -> list[TokenEvent]:
            return await read(backend.generate(request(2)))

        abandoned = asyncio.run(abandon())
        events = asyncio.run(ask())
        drained = asyncio.run(backend.drain(60.0))
        del abandoned

        assert tokens(events) == expected_output((2,), 4)
        assert drained


class TestCancellation:
    @pytest.mark.parametrize("how", ["close", "cancel", "lose"])
    async def test_a_reader_that_goes_away_ends_its_request_within_a_step(self, how: str) -> None:
        """Blocks are free and nothing runs, long before all tokens are made."""
        runner, observed = GatedRunner(), Observed()
        async with serving(runner, observer=observed) as backend:
            stream = backend.generate(request(1, max_tokens=LONG))
            runner.permits.release()
            await anext(stream)
            await runner.wait_until_entered()
            if how == "close":
                await stream.aclose()
            elif how == "cancel":
                reading = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            else:
                del stream
            runner.free_run()
            await observed.wait_for(lambda stats: stats.finished != ())

        [(reason, timings)] = observed.steps[-1].finished
        assert reason is FinishReason.ABORT
        assert timings.num_output_tokens <= 3
        assert (observed.steps[-1].num_running, observed.steps[-1].kv_usage) == (0, 0.0)

    async def test_a_request_that_still_waits_can_go_away(self) -> None:
        """It is never computed."""
        runner, observed = GatedRunner(), Observed()
        async with serving(runner, observer=observed) as backend:
            running = [backend.generate(request(i, max_tokens=6)) for i in range(2)]
            waiting = backend.generate(request(7, request_id="waiting"))
            await waiting.aclose()
            runner.free_run()
            for stream in running:
                await read(stream)

        assert all(name != "waiting" for batch in runner.batches for name, _, _ in batch)

    async def test_a_slow_reader_loses_nothing(self) -> None:
        """Who reads after everything is made gets it in one event, with the end."""
        observed = Observed()
        async with serving(HistoryRunner(), observer=observed) as backend:
            stream = backend.generate(request(1, 2, max_tokens=20))
            await observed.wait_for(lambda stats: stats.finished != ())
            await asyncio.sleep(0)
            [event] = await read(stream)

        assert event.token_ids == expected_output((1, 2), 20)
        assert event.finish_reason is FinishReason.LENGTH


class TestOverload:
    async def test_a_full_queue_refuses_and_says_when_to_come_back(self) -> None:
        """Two may run and one may wait; the fourth is refused; when one is done there is room again."""
        runner = GatedRunner()
        async with serving(runner, max_waiting=1) as backend:
            streams = [backend.generate(request(i, max_tokens=1)) for i in range(3)]
            with pytest.raises(OverloadedError) as caught:
                backend.generate(request(9))
            runner.free_run()
            for stream in streams:
                await read(stream)
            again = await read(backend.generate(request(9)))

        assert 0.1 <= caught.value.retry_after_s <= 60
        assert tokens(again) == expected_output((9,), 4)

    async def test_an_idle_engine_takes_any_n(self) -> None:
        """More choices than places are served one after the other."""
        async with serving(HistoryRunner(), max_waiting=0) as backend:
            events = await read(backend.generate(request(1, n=9)))

        assert len([event for event in events if event.finish_reason]) == 9

    @pytest.mark.parametrize(("name", "value"), [("max_waiting", -1), ("heartbeat_timeout_s", 0.0)])
    def test_settings_that_cannot_work_are_refused_by_name(self, name: str, value: float) -> None:
        """Each names itself."""
        with pytest.raises(ConfigError, match=name):
            LoopConfig(**{name: value})  # type: ignore[arg-type]


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

    async def test_what_does_not_finish_in_time_ends_with_an_error(self) -> None:
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
        assert last.finish_reason is FinishReason.ERROR
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

            assert [event.finish_reason for event in await read(stream)] == [FinishReason.ERROR]


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
