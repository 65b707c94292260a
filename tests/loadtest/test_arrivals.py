"""Arrivals have the rate, the irregularity and the order that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.arrivals import RateCurve, RateSpec, arrival_times, rate_curve, renewal_points
from loadtest.kinds import Burst, ConstantRate, Gamma, Poisson, Ramp, Sinusoid, Step
from loadtest.measures import gap_cv
from tests.loadtest.strategies import rate_specs


@given(rate_specs(), st.integers(0, 1000))
@settings(deadline=None)
def test_times_are_sorted_within_the_duration_and_reproducible(spec: RateSpec, seed: int) -> None:
    """Times rise from 0 to the duration, and the same seed gives the same ones."""
    times = arrival_times(spec, np.random.default_rng(seed))

    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < spec.duration_s))
    assert np.array_equal(times, arrival_times(spec, np.random.default_rng(seed)))


@given(rate_specs())
@settings(deadline=None, max_examples=30)
def test_the_number_of_arrivals_is_the_integral_of_the_rate(spec: RateSpec) -> None:
    """Averaged over seeds, as many requests are due as the rate curve says, however irregular the gaps."""
    expected = float(rate_curve(spec).cumulative()[-1])
    counts = [len(arrival_times(spec, np.random.default_rng(seed))) for seed in range(60)]
    error = np.std(counts) / np.sqrt(len(counts))

    assert abs(np.mean(counts) - expected) <= 5 * error + 1.0


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gaps_have_the_asked_coefficient_of_variation(cv: float) -> None:
    """A long run's gaps vary as asked."""
    points = renewal_points(200_000, cv, np.random.default_rng(1))

    assert gap_cv(list(points)) == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize(("cv", "dispersion"), [(0.0, 0.0), (0.5, 0.25), (1.0, 1.0), (2.0, 4.0)])
def test_counts_have_the_dispersion_of_a_renewal_process(cv: float, dispersion: float) -> None:
    """Var/mean of counts in long windows is CV²: 0 for equal gaps, 1 for Poisson."""
    points = renewal_points(400_000, cv, np.random.default_rng(2))
    counts = np.histogram(points, bins=np.arange(0, 400_001, 200))[0]

    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.12, abs=0.01)


def test_poisson_gaps_are_exponential_and_uncorrelated() -> None:
    """Kolmogorov-Smirnov distance to the exponential is small, and neighbouring gaps do not know each other."""
    times = arrival_times(Poisson(kind="poisson", rate_rps=50, duration_s=400), np.random.default_rng(3))
    gaps = np.sort(np.diff(times)) * 50
    empirical = np.arange(1, len(gaps) + 1) / len(gaps)
    shuffled = np.diff(times)

    assert np.max(np.abs(empirical - (1 - np.exp(-gaps)))) < 1.63 / np.sqrt(len(gaps))  # the 1 % point
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < 0.03


def test_constant_arrivals_have_equal_gaps() -> None:
    """A constant rate is a metronome, not a Poisson process conditioned on its count."""
    times = arrival_times(ConstantRate(kind="constant", rate_rps=4, duration_s=10), np.random.default_rng(0))

    assert len(times) == 40
    assert np.allclose(np.diff(times), 0.25)


@pytest.mark.parametrize(
    ("spec", "windows"),
    [
        (Step(kind="step", steps=((0, 5), (50, 40)), duration_s=100), [(0, 50, 5.0), (50, 100, 40.0)]),
        (Ramp(kind="ramp", from_rps=0, to_rps=40, duration_s=100), [(0, 10, 2.0), (90, 100, 38.0)]),
        (
            Sinusoid(kind="sinusoid", mean_rps=20, swing=1, period_s=100, duration_s=100),
            [(0, 5, 0.16), (45, 55, 39.67)],
        ),
        (
            Burst(kind="burst", base_rps=2, burst_rps=40, every_s=50, burst_s=10, duration_s=100),
            [(0, 40, 2.0), (40, 50, 40.0), (50, 90, 2.0), (90, 100, 40.0)],
        ),
        (Gamma(kind="gamma", rate_rps=20, cv=2, duration_s=100), [(0, 50, 20.0), (50, 100, 20.0)]),
    ],
)
def test_the_rate_in_each_part_of_the_run_is_the_asked_one(
    spec: RateSpec, windows: list[tuple[float, float, float]]
) -> None:
    """Over many seeds, each window holds its rate."""
    times = np.concatenate([arrival_times(spec, np.random.default_rng(seed)) for seed in range(100)])

    for start, end, rate in windows:
        found = np.sum((times >= start) & (times < end)) / (end - start) / 100
        assert found == pytest.approx(rate, rel=0.12, abs=0.15)


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 20)), min_size=2, max_size=6),
    st.lists(st.floats(0, 1), min_size=1, max_size=20),
)
def test_inverse_undoes_cumulative(segments: list[tuple[float, float]], shares: list[float]) -> None:
    """Λ(Λ⁻¹(u)) = u on curves of sloping segments."""
    times = np.cumsum([0.0, *(width for width, _ in segments[1:])])
    curve = RateCurve(times, np.array([rate for _, rate in segments]))
    total = curve.cumulative()[-1]
    counts = np.array(sorted(shares)) * total

    found = curve.inverse(counts)

    assert np.allclose(_integral(curve, found), counts, atol=1e-6 * (1 + total))


def _integral(curve: RateCurve, upto: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    """Λ by adding up exact trapezoids to each instant."""
    areas = []
    for end in upto:
        knots = np.append(curve.times[curve.times < end], end)
        areas.append(float(np.trapezoid(np.interp(knots, curve.times, curve.rates), knots)))
    return areas
