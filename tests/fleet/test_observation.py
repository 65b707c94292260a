"""Watching replicas come."""

from __future__ import annotations

from service.fleet.observation import Starts


def watched(*states: tuple[float, int, set[str]], last_scale_up_at: float | None = None) -> Starts:
    starts = Starts()
    for at, target, running in states:
        starts.watch(at, target, frozenset(running), last_scale_up_at)
    return starts


def test_a_cold_start_is_measured() -> None:
    """From asked for to running; those that were there at first are not known."""
    starts = watched((0.0, 1, {"a"}), (10.0, 2, {"a"}), (14.0, 2, {"a", "b"}))
    assert starts.since == ()
    assert starts.take_start_times() == (4.0,)
    assert starts.take_start_times() == ()


def test_a_second_replica_that_is_asked_for_later_has_its_own_age() -> None:
    """The oldest is taken to come first."""
    starts = watched((0.0, 1, {"a"}), (10.0, 2, {"a"}), (12.0, 3, {"a"}), (15.0, 3, {"a", "b"}))
    assert starts.since == (12.0,)
    assert starts.take_start_times() == (5.0,)


def test_a_start_that_is_called_off_is_forgotten() -> None:
    """The youngest is the one that goes."""
    starts = watched((0.0, 1, {"a"}), (10.0, 2, {"a"}), (12.0, 3, {"a"}), (13.0, 2, {"a"}))
    assert starts.since == (10.0,)
    assert starts.take_start_times() == ()


def test_a_replica_that_died_is_awaited_again() -> None:
    """Serve starts another for it: that is a start."""
    starts = watched((0.0, 2, {"a", "b"}), (5.0, 2, {"a"}), (9.0, 2, {"a", "c"}))
    assert starts.take_start_times() == (4.0,)


def test_the_first_replica_from_zero_is_measured_by_what_serve_says() -> None:
    """Serve starts it without asking the policy, which is next called when it runs."""
    starts = watched((0.0, 0, set()), (30.0, 1, {"a"}), last_scale_up_at=26.0)
    assert starts.take_start_times() == (4.0,)
