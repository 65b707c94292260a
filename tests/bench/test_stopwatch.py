"""A stopwatch: each instant belongs to exactly one part, and what was watched is as it was before."""

from __future__ import annotations

import itertools

import pytest

from service.bench.stopwatch import Point, Stopwatch


class Kitchen:
    """Every call of `clock` is a second later than the one before."""

    def cook(self) -> str:
        return f"{self.chop()} {self.chop()}"

    def chop(self) -> str:
        return "chopped"

    def burn(self) -> None:
        self.chop()
        raise RuntimeError("burnt")


POINTS = (Point(Kitchen, "cook", "cooking"), Point(Kitchen, "chop", "chopping"), Point(Kitchen, "burn", "cooking"))


def ticking() -> Stopwatch:
    seconds = itertools.count()
    return Stopwatch(lambda: float(next(seconds)))


def test_a_caller_is_not_charged_for_whom_it_calls() -> None:
    """Two seconds of chopping inside; before, between and after, the cook's own three."""
    watch = ticking()
    with watch.watching(POINTS):
        assert Kitchen().cook() == "chopped chopped"
    assert watch.spent_s == {"cooking": 3.0, "chopping": 2.0}


def test_parts_add_up_to_the_whole() -> None:
    """From entering to leaving the outermost part nothing is lost, also where a call fails."""
    watch = ticking()
    with watch.watching(POINTS), watch.timing("evening"):
        Kitchen().cook()
        with pytest.raises(RuntimeError):
            Kitchen().burn()
    assert sum(watch.spent_s.values()) == 11.0
    assert watch.spent_s["evening"] == 3.0


def test_what_was_watched_is_as_before() -> None:
    """Also after a failure, and without a second of time after the watching."""
    before = dict(vars(Kitchen))
    watch = ticking()
    with pytest.raises(RuntimeError), watch.watching(POINTS):
        Kitchen().burn()
    Kitchen().chop()
    assert dict(vars(Kitchen)) == before
    assert watch.spent_s["chopping"] == 1.0


def test_a_function_that_is_not_there_is_an_error() -> None:
    """A renamed function cannot make a part vanish in silence; those before it are put back."""
    before = dict(vars(Kitchen))
    with pytest.raises(KeyError), ticking().watching((*POINTS, Point(Kitchen, "wash", "washing"))):
        pass
    assert dict(vars(Kitchen)) == before
