"""When requests are due: a pure function of specification and random generator, computed before anything is sent.

Every open-loop kind is the same two things: a rate over time λ(t), and a unit-rate renewal process that says how
irregular the gaps are (coefficient of variation 0: equal gaps, 1: Poisson, other: gamma). Arrival k is Λ⁻¹(u_k) where
Λ(t) = ∫₀ᵗ λ and u_k is the k-th point of the unit process (time change; Daley & Vere-Jones, "An Introduction to the
Theory of Point Processes", §7.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from loadtest.kinds import Burst, ConstantRate, Gamma, Poisson, Ramp, Sinusoid, Step

Floats = NDArray[np.float64]
RateSpec = ConstantRate | Poisson | Gamma | Step | Ramp | Sinusoid | Burst

KNOTS_PER_PERIOD = 256  # of a sinusoid as line segments: the rate is within 0.01 % of the curve


@dataclass(frozen=True, slots=True)
class RateCurve:
    """λ(t) as line segments: `rates[i]` at `times[i]` (seconds, 1/s). A jump is two knots at one instant."""

    times: Floats
    rates: Floats

    def cumulative(self) -> Floats:
        """Λ at each knot: the expected number of arrivals before it."""
        areas = np.diff(self.times) * (self.rates[1:] + self.rates[:-1]) / 2
        return np.concatenate([[0.0], np.cumsum(areas)])

    def inverse(self, counts: Floats) -> Floats:
        """Λ⁻¹, exact: within a segment Λ is a parabola, and area a is reached after 2a / (r + √(r² + 2·slope·a))."""
        cumulative = self.cumulative()
        segment = np.searchsorted(cumulative, counts, side="right") - 1
        segment = np.clip(segment, 0, len(self.times) - 2)
        width = self.times[segment + 1] - self.times[segment]
        rate = self.rates[segment]
        slope = np.divide(self.rates[segment + 1] - rate, width, out=np.zeros_like(width), where=width > 0)
        area = counts - cumulative[segment]
        root = np.sqrt(np.maximum(rate**2 + 2 * slope * area, 0.0))
        into = np.divide(2 * area, rate + root, out=np.zeros_like(area), where=rate + root > 0)
        return np.asarray(self.times[segment] + np.minimum(into, width))


def renewal_points(expected: float, cv: float, rng: np.random.Generator) -> Floats:
    """Points in [0, expected) of a stationary renewal process with mean gap 1 and this coefficient of variation.

    Stationary means that the expected number of points is exactly `expected`: the first gap is what an observer who
    comes at a random moment waits, a uniform part of a length-biased gap (for gamma gaps of shape k that is a gamma
    of shape k + 1).
    """
    if cv == 0:
        return np.arange(rng.uniform(), expected, 1.0)
    shape = 1 / cv**2
    first = rng.uniform() * rng.gamma(shape + 1, cv**2)
    points = np.array([first])
    while points[-1] < expected:
        batch = max(64, int(1.2 * (expected - points[-1])))
        points = np.concatenate([points, points[-1] + np.cumsum(rng.gamma(shape, cv**2, batch))])
    return points[points < expected]


def arrival_times(spec: RateSpec, rng: np.random.Generator) -> Floats:
    """Seconds after the start of the run, sorted, all below `spec.duration_s`."""
    curve = rate_curve(spec)
    points = renewal_points(float(curve.cumulative()[-1]), _cv(spec), rng)
    times = curve.inverse(points)
    return times[times < spec.duration_s]


def _cv(spec: RateSpec) -> float:
    match spec:
        case ConstantRate():
            return 0.0
        case Poisson():
            return 1.0
        case Gamma() | Step() | Ramp() | Sinusoid() | Burst():
            return spec.cv
        case _:
            assert_never(spec)


def rate_curve(spec: RateSpec) -> RateCurve:
    """λ(t) of this specification over [0, duration_s]."""
    end = spec.duration_s
    match spec:
        case ConstantRate() | Poisson() | Gamma():
            return _levels([(0.0, spec.rate_rps)], end)
        case Step():
            return _levels(list(spec.steps), end)
        case Ramp():
            return RateCurve(np.array([0.0, end]), np.array([spec.from_rps, spec.to_rps]))
        case Sinusoid():
            knots = 1 + int(np.ceil(KNOTS_PER_PERIOD * end / spec.period_s))
            times = np.linspace(0.0, end, max(knots, 2))
            return RateCurve(times, spec.mean_rps * (1 - spec.swing * np.cos(2 * np.pi * times / spec.period_s)))
        case Burst():
            levels: list[tuple[float, float]] = []
            for start in np.arange(0.0, end, spec.every_s):
                levels += [(start, spec.base_rps), (start + spec.every_s - spec.burst_s, spec.burst_rps)]
            return _levels([level for level in levels if level[0] < end], end)
        case _:
            assert_never(spec)


def _levels(levels: list[tuple[float, float]], end: float) -> RateCurve:
    """A rate that is constant from each start to the next."""
    starts = [start for start, _ in levels]
    ends = [*starts[1:], end]
    times = [instant for pair in zip(starts, ends, strict=True) for instant in pair]
    return RateCurve(np.array(times), np.repeat([rate for _, rate in levels], 2))
