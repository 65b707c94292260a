"""The live view shows what is so now."""

from __future__ import annotations

import io
from collections import Counter

from rich.console import Console

from loadtest.schedule import make_schedule
from loadtest.scrape import Snapshot
from loadtest.watch import Watch
from loadtest.worker import Progress
from tests.loadtest.fabricate import scenario


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _text(watch: Watch) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(watch.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_view_follows_the_run() -> None:
    """Rates, in flight, latencies of the last seconds, errors, CPU, the server's numbers and replicas."""
    clock = _Clock()
    watch = Watch(scenario(), Console(file=io.StringIO()), clock)
    assert "starting workers" in _text(watch)

    watch.started(make_schedule(scenario()), start_at=1000.0)
    clock.now = 1010.0
    watch.progress(0, Progress(sent=100, in_flight=7, outcomes=Counter(ok=90), cpu_ratio=0.25))
    clock.now = 1012.0
    watch.progress(
        0,
        Progress(
            sent=140,
            in_flight=8,
            outcomes=Counter(ok=120, cut=12),
            ttfts_s=[0.1, 0.3, 0.2],
            tpots_s=[0.05],
            cpu_ratio=0.5,
        ),
    )
    watch.scraped(Snapshot(at_s=12.0, running=6, waiting=2, replicas=3))
    view = _text(watch)

    for part in (
        "12 s",
        "132 of",
        "(140 in all)",
        "in flight        8",
        "200 ms",
        "50 ms",
        "cut 12",
        "50%",
        "6 running, 2",
        "replicas         3",
    ):
        assert part in view, part


def test_old_latencies_leave_the_view() -> None:
    """A TTFT of ten seconds ago is not "now"."""
    clock = _Clock()
    watch = Watch(scenario(), Console(file=io.StringIO()), clock)
    watch.started(make_schedule(scenario()), start_at=1000.0)
    watch.progress(0, Progress(ttfts_s=[9.0]))
    clock.now = 1011.0
    watch.progress(0, Progress(ttfts_s=[0.5]))

    assert "500 ms" in _text(watch)
    assert "9 s" not in _text(watch)
