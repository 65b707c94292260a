"""One self-contained page for a simulation: a table, and for each policy its fleet over time. SVG, no scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from service.autoscaling.simulator.measures import Summary
from service.autoscaling.simulator.outcome import Outcome, Sample

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 900, 180, 46, 22
_MAX_POINTS = 900

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
 body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 960px; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }}
 table {{ border-collapse: collapse; width: 100% }} td, th {{ padding: .3rem .6rem; text-align: right }}
 td:first-child, th:first-child {{ text-align: left }} tr + tr {{ border-top: 1px solid #dde3ea }}
 svg {{ width: 100%; height: auto }} .axis {{ stroke: #b7c1cc }} text {{ font-size: 11px; fill: #5b6875 }}
 .ready {{ fill: #cfe3f7 }} .paid {{ fill: none; stroke: #1f6fb5; stroke-width: 1.5 }}
 .work {{ fill: none; stroke: #c2571a; stroke-width: 1.2 }} .ttft {{ fill: none; stroke: #6a3fa0; stroke-width: 1.2 }}
 .key span {{ margin-right: 1.2rem }}
</style>
<h1>{title}</h1><p>{subtitle}</p>
{table}
<p class="key"><span style="color:#1f6fb5">— replicas paid for</span><span style="color:#7da9d6">▇ ready</span>
<span style="color:#c2571a">— requests under way ÷ those one replica can run</span>
<span style="color:#6a3fa0">— time to first token, p99 by slice, s</span></p>
{plots}
</html>
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's run, for the page."""

    label: str
    outcome: Outcome
    summary: Summary


def page(title: str, subtitle: str, runs: Sequence[Run], max_num_seqs: int) -> str:
    """The whole document."""
    plots = "\n".join(
        f"<h2>{escape(run.label)}</h2>\n{_fleet_plot(run.outcome, max_num_seqs)}\n{_ttft_plot(run.outcome)}"
        for run in runs
    )
    return _PAGE.format(title=escape(title), subtitle=escape(subtitle), table=_table(runs), plots=plots)


def _table(runs: Sequence[Run]) -> str:
    head = "<tr><th>policy<th>SLO met<th>replica-h<th>cost, replica-h<th>TTFT p50<th>p99<th>changes<th>cut</tr>"
    rows = [
        f"<tr><td>{escape(run.label)}<td>{s.slo_attainment:.2%}"
        f"<td>{s.replica_seconds / 3600:.2f}<td>{s.cost / 3600:.2f}<td>{s.ttft_p50_s:.2f} s<td>{s.ttft_p99_s:.2f} s"
        f"<td>{s.scale_events}<td>{s.num_cut}</tr>"
        for run in runs
        for s in (run.summary,)
    ]
    return f"<table>{head}{''.join(rows)}</table>"


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps seconds and values to the plot."""

    end_s: float
    top: float

    def point(self, at: float, value: float) -> str:
        x = _LEFT + (_WIDTH - _LEFT) * at / self.end_s
        y = (_HEIGHT - _BOTTOM) * (1.0 - min(value, self.top) / self.top)
        return f"{x:.1f},{y:.1f}"

    def draw(self, shapes: str) -> str:
        floor = _HEIGHT - _BOTTOM
        return (
            f'<svg viewBox="0 -8 {_WIDTH} {_HEIGHT + 8}" role="img">{shapes}'
            f'<path class="axis" d="M{_LEFT},0V{floor}H{_WIDTH}" fill="none"/>'
            f'<text x="{_LEFT - 6}" y="8" text-anchor="end">{self.top:g}</text>'
            f'<text x="{_LEFT - 6}" y="{floor}" text-anchor="end">0</text>'
            f'<text x="{_WIDTH}" y="{floor + 16}" text-anchor="end">{self.end_s / 60:.0f} min</text></svg>'
        )


def _fleet_plot(outcome: Outcome, max_num_seqs: int) -> str:
    samples = _thinned(outcome.samples)
    frame = _Frame(samples[-1].at, max(1.0, *(float(s.num_replicas) for s in samples)) + 1.0)
    ready = _stairs([(s.at, float(s.num_ready)) for s in samples], frame.point)
    paid = _stairs([(s.at, float(s.num_replicas)) for s in samples], frame.point)
    work = " ".join(frame.point(s.at, s.num_ongoing / max_num_seqs) for s in samples)
    floor = frame.point(samples[-1].at, 0.0)
    return frame.draw(
        f'<polygon class="ready" points="{frame.point(samples[0].at, 0.0)} {ready} {floor}"/>'
        f'<polyline class="paid" points="{paid}"/><polyline class="work" points="{work}"/>'
    )


def _ttft_plot(outcome: Outcome) -> str:
    end_s = outcome.samples[-1].at
    slices: list[list[float]] = [[] for _ in range(120)]
    for sequence in outcome.finished:
        assert sequence.first_token_at is not None
        arrival_at = sequence.request.arrival_at
        slices[min(119, int(arrival_at / end_s * 120))].append(sequence.first_token_at - arrival_at)
    points = [
        ((i + 0.5) * end_s / 120, sorted(values)[int(0.99 * (len(values) - 1))])
        for i, values in enumerate(slices)
        if values
    ]
    frame = _Frame(end_s, max(1.0, round(max((value for _, value in points), default=1.0) + 0.5)))
    return frame.draw(f'<polyline class="ttft" points="{" ".join(frame.point(*point) for point in points)}"/>')


def _stairs(points: Sequence[tuple[float, float]], place: Callable[[float, float], str]) -> str:
    corners = [place(*points[0])]
    for (_, before), (at, after) in pairwise(points):
        corners += [place(at, before), place(at, after)]
    return " ".join(corners)


def _thinned(values: Sequence[Sample]) -> Sequence[Sample]:
    return values[:: max(1, len(values) // _MAX_POINTS)]
