"""The live view of a run in the terminal: what was asked and got, what is in flight, latencies now, errors,
replicas."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.experiment import Observer
from loadtest.records import Outcome
from loadtest.schedule import Schedule
from loadtest.scrape import Snapshot
from loadtest.spec import Scenario
from loadtest.verdict import duration
from loadtest.worker import Progress

WINDOW_S = 5.0  # "now" in the view
REFRESH_PER_S = 4


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    worker: int
    progress: Progress


class Watch(Observer):
    """Use as a context manager around a run; draws nothing where the console is not a terminal."""

    def __init__(self, scenario: Scenario, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._scenario = scenario
        self._now = now
        self._starts_s: np.ndarray[tuple[int], np.dtype[np.float64]] = np.array([])
        self._num_requests = 0
        self._start_at: float | None = None
        self._last: dict[int, Progress] = {}
        self._window: list[_Seen] = []
        self._snapshot: Snapshot | None = None
        self._live = Live(console=console, refresh_per_second=REFRESH_PER_S, get_renderable=self.render, transient=True)
        self._is_drawn = console.is_terminal

    def __enter__(self) -> Self:
        if self._is_drawn:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._is_drawn:
            self._live.stop()

    def started(self, schedule: Schedule, start_at: float) -> None:
        self._starts_s = np.array(schedule.starts_s())
        self._num_requests = len(schedule.requests)
        self._start_at = start_at

    def progress(self, worker: int, progress: Progress) -> None:
        now = self._now()
        self._last[worker] = progress
        self._window.append(_Seen(now, worker, progress))
        self._window = [seen for seen in self._window if seen.at >= now - WINDOW_S]

    def scraped(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def render(self) -> Group:
        """The view as it stands now."""
        if self._start_at is None:
            return Group(Text(f"{self._scenario.name}: starting workers"))
        elapsed = max(self._now() - self._start_at, 0.0)
        outcomes: Counter[str] = Counter()
        for progress in self._last.values():
            outcomes.update(progress.outcomes)
        over = sum(outcomes.values())
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=self._num_requests, completed=over, width=40))
        head = Text(f"{self._scenario.name}  {elapsed:.0f} s  {over} of {self._num_requests} requests over")
        return Group(head, bar, self._table(elapsed, outcomes))

    def _table(self, elapsed: float, outcomes: Counter[str]) -> Table:
        table = Table.grid(padding=(0, 2))
        for label, value in self._rows(elapsed, outcomes):
            table.add_row(Text(label, style="dim"), value)
        return table

    def _rows(self, elapsed: float, outcomes: Counter[str]) -> list[tuple[str, str]]:
        span = max(min(elapsed, WINDOW_S), 1e-9)
        due = int(np.searchsorted(self._starts_s, [elapsed - span, elapsed]) @ [-1, 1])
        sent = sum(last.sent for last in self._last.values())
        failed = {name: count for name, count in outcomes.items() if Outcome(name).is_failure}
        rows = [
            ("rate asked, now", f"{due / span:.1f} /s" if len(self._starts_s) else "closed loop"),
            ("rate sent, now", f"{self._sent_in_window() / span:.1f} /s ({sent} in all)"),
            ("in flight", str(sum(last.in_flight for last in self._last.values()))),
            ("TTFT p50, now", duration(self._median("ttfts_s"))),
            ("TPOT p50, now", duration(self._median("tpots_s"))),
            ("errors", ", ".join(f"{name} {count}" for name, count in sorted(failed.items())) or "none"),
            ("tester CPU", ", ".join(f"{last.cpu_ratio:.0%}" for _, last in sorted(self._last.items()))),
        ]
        if self._snapshot is not None and self._snapshot.running is not None:
            waiting = f", {self._snapshot.waiting:.0f} waiting" if self._snapshot.waiting is not None else ""
            rows.append(("server", f"{self._snapshot.running:.0f} running{waiting}"))
        if self._snapshot is not None and self._snapshot.replicas is not None:
            rows.append(("replicas", f"{self._snapshot.replicas:.0f}"))
        return rows

    def _sent_in_window(self) -> int:
        first: dict[int, int] = {}
        for seen in self._window:
            first.setdefault(seen.worker, seen.progress.sent)
        return sum(self._last[worker].sent - sent for worker, sent in first.items())

    def _median(self, name: str) -> float | None:
        values = [value for seen in self._window for value in getattr(seen.progress, name)]
        return float(np.median(values)) if values else None
