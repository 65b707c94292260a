"""Whose turn it is: splits one thread's time among named parts, by functions that are timed while a bench looks on.

Functions that call each other do not count twice: a call stops the clock of whoever made it. The functions themselves
know nothing of this; when the watching ends they are the same objects as before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, NamedTuple


class Point(NamedTuple):
    """The function `name` of `owner`, a class or a module: its time is that of `part`."""

    owner: Any
    name: str
    part: str


class Stopwatch:
    """Seconds of each part, without those of the parts that it called. For one thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: list[str] = []
        self._since = 0.0
        self.spent_s: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """The time inside counts for `part`."""
        self._enter(part)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def watching(self, points: Iterable[Point]) -> Iterator[None]:
        """Inside, every call of a point's function is timed."""
        with ExitStack() as undo:
            for owner, name, part in points:
                original = vars(owner)[name]
                setattr(owner, name, self._timed(original, part))
                undo.callback(partial(setattr, owner, name, original))
            yield

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return timed

    def _enter(self, part: str) -> None:
        now = self._clock()
        if self._running:
            self.spent_s[self._running[-1]] += now - self._since
        self._running.append(part)
        self._since = now

    def _leave(self) -> None:
        now = self._clock()
        self.spent_s[self._running.pop()] += now - self._since
        self._since = now
