"""Plots as inline SVG: no script, no network, readable in light and dark (colours are the page's CSS variables)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 620, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 30, 12, 44
NUM_TICKS = 6
MIN_TICKS = 3

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """`kind`: line, step (constant until the next point) or dots. `colour`: number of a CSS variable `--series-N`.

    `is_right`: measured on the axis at the right, which is for small whole numbers.
    """

    label: str
    points: Sequence[Point]
    kind: str = "line"
    colour: int = 1
    is_right: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """A vertical mark with a tooltip."""

    x: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    events: Sequence[Event] = ()
    is_x_log: bool = False
    y_max: float | None = None

    def svg(self) -> str:
        """The drawing, or a note when there is nothing to draw."""
        drawn = [series for series in self.series if series.points]
        if not drawn:
            return f'<p class="empty">{escape(self.title)}: no data.</p>'
        x, y, right = self._axes(drawn)
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">',
            *_grid(x, y),
            *(_right_ticks(right) if any(series.is_right for series in drawn) else ()),
            *(_event(event, x) for event in self.events),
            *(_draw(series, x, right if series.is_right else y) for series in drawn),
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{escape(self.x_label)}</text>',
            f'<text class="label" x="14" y="{(TOP + HEIGHT - BOTTOM) / 2}" '
            f'transform="rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2})">{escape(self.y_label)}</text>',
            "</svg>",
        ]
        return "\n".join(parts) + _legend(drawn)

    def _axes(self, drawn: Sequence[Series]) -> tuple[Axis, Axis, Axis]:
        """Across, up at the left, up at the right."""
        xs = [x for series in drawn for x, _ in series.points] + [event.x for event in self.events]
        low = min((x for x in xs if x > 0), default=1.0) if self.is_x_log else min(0.0, *xs)
        high = max([*xs, low * 1.01, 1e-9])
        tops = [
            max((y for series in drawn if series.is_right is is_right for _, y in series.points), default=0.0) * 1.05
            for is_right in (False, True)
        ]
        return (
            Axis(low, high, LEFT, WIDTH - RIGHT, self.is_x_log),
            Axis(0.0, self.y_max or tops[0] or 1.0, HEIGHT - BOTTOM, TOP),
            Axis(0.0, max(tops[1], NUM_TICKS), HEIGHT - BOTTOM, TOP),
        )


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    ticks: list[float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ticks", log_ticks(self.low, self.high) if self.is_log else ticks(self.low, self.high))

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)


def ticks(low: float, high: float) -> list[float]:
    """About `NUM_TICKS` round numbers in [low, high]."""
    raw = (high - low) / NUM_TICKS
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade in [low, high]; round numbers where that leaves next to nothing."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) >= MIN_TICKS else ticks(low, high)


def _grid(x: Axis, y: Axis) -> list[str]:
    parts = [f'<line class="axis" x1="{x.start}" y1="{y.start}" x2="{x.end}" y2="{y.start}"/>']
    parts += [f'<text class="tick" x="{x(value)}" y="{y.start + 16}">{value:g}</text>' for value in x.ticks]
    for value in y.ticks:
        parts.append(f'<line class="grid" x1="{x.start}" y1="{y(value)}" x2="{x.end}" y2="{y(value)}"/>')
        parts.append(f'<text class="tick y" x="{x.start - 6}" y="{y(value) + 4}">{value:g}</text>')
    return parts


def _right_ticks(right: Axis) -> list[str]:
    edge = WIDTH - RIGHT + 6
    return [f'<text class="tick right" x="{edge}" y="{right(value) + 4}">{value:g}</text>' for value in right.ticks]


def _draw(series: Series, x: Axis, y: Axis) -> str:
    points = [(x(a), max(y(b), y.end)) for a, b in series.points]
    if series.kind == "dots":
        dots = "".join(f'<circle cx="{a}" cy="{b}" r="2"/>' for a, b in points)
        return f'<g class="dots s{series.colour}">{dots}</g>'
    if series.kind == "step":
        path = f"M{points[0][0]} {points[0][1]}" + "".join(f"H{a}V{b}" for a, b in points[1:])
    else:
        path = "M" + "L".join(f"{a} {b}" for a, b in points)
    return f'<path class="line s{series.colour}" d="{path}"/>'


def _event(event: Event, x: Axis) -> str:
    at = x(event.x)
    return (
        f'<g class="event"><title>{escape(event.label)}</title>'
        f'<line x1="{at}" y1="{TOP}" x2="{at}" y2="{HEIGHT - BOTTOM}"/><circle cx="{at}" cy="{TOP + 4}" r="4"/></g>'
    )


def _legend(drawn: Sequence[Series]) -> str:
    items = "".join(f'<span class="s{series.colour}">{escape(series.label)}</span>' for series in drawn)
    return f'<div class="legend">{items}</div>'
