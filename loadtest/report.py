"""A result as one self-contained HTML page: every plot and style is in it, nothing is fetched, no script runs."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loadtest.plots import Event, Plot, Point, Series
from loadtest.results import Interval, RunResult
from loadtest.verdict import duration

LATENCY_LABELS = {
    "ttft_s": "TTFT",
    "ttft_from_send_s": "TTFT from actual send",
    "itl_s": "ITL (gaps between events)",
    "tpot_s": "TPOT",
    "e2e_s": "E2E",
    "e2e_from_send_s": "E2E from actual send",
    "lateness_s": "Lateness of the tester",
}


def render_html(result: RunResult) -> str:
    """Pure: the page of this result."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["duration"] = duration
    return environment.get_template("report.html.j2").render(
        result=result,
        latencies=[(label, getattr(result.latency, name)) for name, label in LATENCY_LABELS.items()],
        plots=[(plot.title, Markup(plot.svg())) for plot in plots(result)],  # noqa: S704 - plots escape their texts
        scenario=json.dumps(result.scenario, indent=2),
    )


def plots(result: RunResult) -> list[Plot]:
    """What the page draws, in order."""
    return [
        _latency_over_time(result),
        _rates(result),
        _in_flight(result),
        _cdf(
            result,
            "TTFT: share of requests at or below",
            {"ttft_s": "from intended send", "ttft_from_send_s": "from send"},
        ),
        _cdf(result, "TPOT: share of requests at or below", {"tpot_s": "TPOT"}),
        _cdf(result, "E2E: share of requests at or below", {"e2e_s": "E2E"}),
        Plot(
            title="TTFT against prompt length",
            x_label="prompt tokens",
            y_label="TTFT (s)",
            series=[Series("one request", result.scatter, "dots", 1)],
        ),
    ]


def _line(intervals: list[Interval], name: str) -> list[Point]:
    """(time, value) where the value is known."""
    return [(interval.at_s, float(value)) for interval in intervals if (value := getattr(interval, name)) is not None]


def _latency_over_time(result: RunResult) -> Plot:
    return Plot(
        title="TTFT over the run",
        x_label="intended send time (s)",
        y_label="TTFT (s)",
        series=[
            Series("p50", _line(result.intervals, "ttft_p50_s"), "line", 1),
            Series("p99", _line(result.intervals, "ttft_p99_s"), "line", 2),
        ],
    )


def _rates(result: RunResult) -> Plot:
    width = result.intervals[1].at_s if len(result.intervals) > 1 else 1.0
    names = (("due", "asked", 3), ("ok", "complete", 1), ("failed", "failed", 2))
    return Plot(
        title="Rates",
        x_label="time (s)",
        y_label="requests/s",
        series=[
            Series(label, [(at, value / width) for at, value in _line(result.intervals, name)], "step", colour)
            for name, label, colour in names
        ],
    )


def _in_flight(result: RunResult) -> Plot:
    """Requests at the left axis, replicas at the right one."""
    replicas = _line(result.intervals, "replicas")
    decided = [(decision.at_s, decision.replicas) for decision in result.decisions if decision.replicas is not None]
    series = [
        Series("in flight (client)", _line(result.intervals, "in_flight"), "step", 1),
        Series("running (server)", _line(result.intervals, "running"), "step", 3),
        Series("waiting (server)", _line(result.intervals, "waiting"), "step", 2),
        Series("replicas (right)", replicas, "step", 4, is_right=True),
        Series("replicas decided (right)", decided, "step", 5, is_right=True),
    ]
    events = [
        Event(decision.at_s, f"{decision.at_s:.0f} s: {decision.replicas} replicas. {decision.reason}")
        for decision in result.decisions
    ]
    return Plot(
        title="In flight, replicas and decisions", x_label="time (s)", y_label="requests", series=series, events=events
    )


def _cdf(result: RunResult, title: str, names: dict[str, str]) -> Plot:
    series = [
        Series(label, result.cdf.get(name, []), "line", 1 + number)
        for number, (name, label) in enumerate(names.items())
    ]
    return Plot(title=title, x_label="seconds (log scale)", y_label="share", series=series, is_x_log=True, y_max=1.0)
