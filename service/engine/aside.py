"""Computations beside generation (attention maps, embeddings): they take turns with the engine's steps.

An aside is a generator that yields after each bounded piece of its work and returns its result. Between two steps the
engine thread runs one piece of one aside, so a step waits for a piece at most, however large the whole is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from service.errors import EngineError, HeadcountError, OverloadedError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Pieces = Generator[None, None, T]

MAX_ASIDES = 8
RETRY_AFTER_S = 1.0


class Asides:
    """Those of one engine, served in turn. `add` and `fail` on any thread, under the engine's lock; `run_piece` on the
    engine's thread without it."""

    def __init__(self) -> None:
        self._queue: deque[_Aside] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, pieces: Pieces[T]) -> asyncio.Future[T]:
        """The result to come, for the running event loop; cancelling it ends the work. Raises OverloadedError."""
        if len(self._queue) >= MAX_ASIDES:
            raise OverloadedError(
                f"{MAX_ASIDES} such computations are under way already: retry later.", retry_after_s=RETRY_AFTER_S
            )
        aside = _Aside(pieces, asyncio.get_running_loop())
        self._queue.append(aside)
        return aside.future

    def run_piece(self) -> None:
        """One piece of the one whose turn it is, if there are any."""
        if not self._queue:
            return
        aside = self._queue[0]
        is_over = aside.run_piece()
        self._queue.rotate(-1)
        if is_over:
            with suppress(ValueError):  # `fail` was quicker
                self._queue.remove(aside)

    def fail(self, error: HeadcountError) -> None:
        """End all of them."""
        while self._queue:
            self._queue.popleft().fail(error)


class _Aside:
    def __init__(self, pieces: Pieces[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._pieces = pieces
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()

    def run_piece(self) -> bool:
        """Whether it is over, well or badly."""
        if self.future.cancelled():
            self._pieces.close()
            return True
        try:
            next(self._pieces)
        except StopIteration as end:
            self._settle(partial(self.future.set_result, end.value))
        except Exception as error:
            logger.exception("a computation beside the steps failed")
            self.fail(EngineError(f"The engine failed while computing this request ({type(error).__name__})."))
        else:
            return False
        return True

    def fail(self, error: HeadcountError) -> None:
        self._settle(partial(self.future.set_exception, error))

    def _settle(self, settle: Callable[[], None]) -> None:
        def unless_done() -> None:
            if not self.future.done():
                settle()

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(unless_done)
