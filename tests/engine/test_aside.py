"""Computations beside generation, on the engine's thread and between its steps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

import pytest

from service.engine.aside import MAX_ASIDES
from service.errors import EngineError, OverloadedError, UnavailableError
from tests.engine.fakes import HistoryRunner, expected_output, request
from tests.engine.serving import GatedRunner, read, serving, tokens


def counting(num_pieces: int, log: list[str], name: str = "piece") -> Generator[None, None, int]:
    for _ in range(num_pieces):
        log.append(name)
        yield
    return num_pieces


def endless(begun: threading.Event, closed: threading.Event) -> Generator[None, None, int]:
    try:
        while True:
            begun.set()
            yield
    finally:
        closed.set()


def failing() -> Generator[None, None, int]:
    yield
    raise ZeroDivisionError


async def test_the_result_comes_from_the_engines_thread() -> None:
    """An idle engine wakes for it."""

    def where() -> Generator[None, None, str]:
        yield
        return threading.current_thread().name

    async with serving(HistoryRunner()) as backend:
        assert await backend.compute(where()) == "engine"


async def test_a_step_waits_for_one_piece_at_most() -> None:
    """While something is generated, steps and pieces take turns, and the tokens are what they always are."""
    log: list[str] = []

    class Logged(GatedRunner):
        def execute(self, *args: object) -> object:  # type: ignore[override]
            log.append("step")
            return super().execute(*args)  # type: ignore[arg-type]

    runner = Logged()
    async with serving(runner) as backend:
        stream = backend.generate(request(1, max_tokens=6))
        await runner.wait_until_entered()
        future = backend.compute(counting(4, log))
        runner.free_run()
        assert await future == 4
        assert tokens(await read(stream)) == expected_output((1,), 6)
    assert log[:8] == ["step", "piece"] * 4


async def test_several_take_turns() -> None:
    """A short one is not behind a long one."""
    runner, log = GatedRunner(), list[str]()
    async with serving(runner) as backend:
        stream = backend.generate(request(1, max_tokens=2))
        await runner.wait_until_entered()
        futures = [backend.compute(counting(3, log, "a")), backend.compute(counting(1, log, "b"))]
        runner.free_run()
        assert await asyncio.gather(*futures) == [3, 1]
        await read(stream)
    assert log == ["a", "b", "a", "a"]


async def test_a_failure_is_its_own() -> None:
    """The engine goes on."""
    async with serving(HistoryRunner()) as backend:
        with pytest.raises(EngineError, match="ZeroDivisionError"):
            await backend.compute(failing())
        assert tokens(await read(backend.generate(request(1)))) == expected_output((1,), 4)
        assert backend.health().alive


async def test_a_caller_that_goes_ends_the_work() -> None:
    """No piece is computed for nobody."""
    begun, closed = threading.Event(), threading.Event()
    async with serving(HistoryRunner()) as backend:
        future = backend.compute(endless(begun, closed))
        assert await asyncio.to_thread(begun.wait, 60)
        future.cancel()
        assert await asyncio.to_thread(closed.wait, 60)


async def test_there_is_room_for_a_few() -> None:
    """Beyond that the answer is to come back later."""
    runner = GatedRunner()
    async with serving(runner) as backend:
        stream = backend.generate(request(1))
        await runner.wait_until_entered()
        futures = [backend.compute(counting(1, [])) for _ in range(MAX_ASIDES)]
        with pytest.raises(OverloadedError):
            backend.compute(counting(1, []))
        runner.free_run()
        await asyncio.gather(*futures)
        await read(stream)


async def test_a_drain_waits_for_it() -> None:
    """What was accepted is finished; nothing new is."""
    async with serving(HistoryRunner()) as backend:
        future = backend.compute(counting(100, []))
        assert await backend.drain(60.0)
        assert await future == 100
        with pytest.raises(UnavailableError):
            backend.compute(counting(1, []))


async def test_a_stop_ends_it() -> None:
    """Whoever waits is told."""
    async with serving(HistoryRunner()) as backend:
        future = backend.compute(endless(threading.Event(), threading.Event()))
        await asyncio.to_thread(backend.close)
        with pytest.raises(UnavailableError):
            await future
