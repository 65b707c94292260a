"""The engine thread and its asyncio side: requests come, are refused, and go away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from typing import TypeVarTuple, Unpack

import pytest

from service.backend import Backend, TokenStream
from service.engine.config import EngineConfig, LoopConfig
from service.engine.core import EngineCore
from service.engine.loop import EngineBackend
from service.errors import ConfigError, ContextLengthError, InvalidRequestError, OverloadedError
from service.types import FinishReason, TokenEvent
from tests.engine.fakes import FakeClock, HistoryRunner, expected_output, request
from tests.engine.serving import LONG, GatedRunner, Observed, read, serving, tokens

Args = TypeVarTuple("Args")


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
        """A backend outlives the loop of one caller: what that left is aborted, and the next caller is served."""
        runner = GatedRunner()
        core = EngineCore(runner, EngineConfig(), FakeClock())
        backend = EngineBackend(core, LoopConfig())
        backend.start()

        async def abandon() -> TokenStream:
            return backend.generate(request(1, max_tokens=LONG, request_id="abandoned"))

        async def ask() -> list[TokenEvent]:
            return await read(backend.generate(request(2)))

        abandoned = asyncio.run(abandon())
        runner.free_run()
        events = asyncio.run(ask())
        drained = asyncio.run(backend.drain(60.0))
        del abandoned

        assert tokens(events) == expected_output((2,), 4)
        assert drained
        assert sum(name == "abandoned" for batch in runner.batches for name, _, _ in batch) <= 2


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

    async def test_prompts_are_ahead_from_their_acceptance_on(self) -> None:
        """Also while a step runs that knows nothing of them yet; in the end nothing is left."""
        runner = GatedRunner()
        async with serving(runner) as backend:
            streams = [backend.generate(request(*range(10), max_tokens=1)) for _ in range(3)]
            assert backend.prompts_ahead()[0] == 30
            runner.free_run()
            for stream in streams:
                await read(stream)
            assert backend.prompts_ahead()[0] == 0

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
