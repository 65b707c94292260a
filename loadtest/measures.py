"""From records to numbers. Pure; every formula is in docs/metrics.md, "Client side".

Requests follow each other and share a queue, so their latencies are not independent. The intervals take that into
account: quantiles by a circular block bootstrap in order of intended time (Politis & Romano 1992, block length n^⅓),
shares by Wilson's interval with an effective sample size from batch means.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest import histogram
from loadtest.records import Outcome, Record
from loadtest.results import Latencies, Latency, Quantile
from loadtest.spec import Slo

Floats = NDArray[np.float64]
LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
CONFIDENCE = 0.95
Z = 1.959964  # standard normal quantile of (1 + CONFIDENCE) / 2
MAX_RESAMPLES = 1000
MIN_RESAMPLES = 50
BATCH_VALUES = 500_000
RESAMPLED_VALUES = 20_000_000  # bound on values × resamples: about a second


def latencies(records: Sequence[Record], gaps: histogram.Counts) -> Latencies:
    """Of complete requests, in schedule order; lateness of everything sent."""
    ok = [record for record in records if record.outcome is Outcome.OK]
    return Latencies(
        ttft_s=latency(record.ttft_s for record in ok),
        ttft_from_send_s=latency(record.ttft_from_send_s for record in ok),
        itl_s=gap_latency(gaps),
        tpot_s=latency(record.tpot_s for record in ok),
        e2e_s=latency(record.e2e_s for record in ok),
        e2e_from_send_s=latency(record.e2e_from_send_s for record in ok),
        lateness_s=latency(record.lateness_s for record in records),
    )


def latency(values: Iterable[float | None], seed: int = 0) -> Latency:
    """The distribution of the known values, with block-bootstrap intervals."""
    array = known(values)
    levels = _supported_levels(len(array))
    if not levels:
        return _latency(array, {})
    points = np.quantile(array, list(levels.values()))
    resampled = np.concatenate(
        [np.quantile(array[index], list(levels.values()), axis=1).T for index in _block_resamples(len(array), seed)]
    )
    return _latency(array, _with_intervals(levels, points, resampled))


def gap_latency(counts: histogram.Counts, seed: int = 0) -> Latency:
    """The same from a GapHistogram: its groups (stretches of the run) are what is resampled."""
    total = counts.sum(axis=0)
    count = int(total.sum())
    levels = _supported_levels(count)
    if not levels:
        return _latency(np.array([]), {})
    wanted = list(levels.values())
    used = counts[counts.sum(axis=1) > 0]
    rng = np.random.default_rng(seed)
    resampled = np.array(
        [histogram.quantiles(used[rng.integers(len(used), size=len(used))].sum(axis=0), wanted) for _ in range(200)]
    )
    points = _with_intervals(levels, np.array(histogram.quantiles(total, wanted)), resampled)
    values = histogram.bucket_values()
    highest = float(values[np.flatnonzero(total)[-1]])
    return Latency(count=count, mean=float(total @ values / count), max=highest, **_all_levels(points))


def known(values: Iterable[float | None]) -> Floats:
    """Those that are not None, in order."""
    return np.array([value for value in values if value is not None], dtype=np.float64)


def quantile(values: Floats, level: float) -> float | None:
    return float(np.quantile(values, level)) if len(values) else None


def _latency(array: Floats, points: dict[str, Quantile]) -> Latency:
    return Latency(
        count=len(array),
        mean=float(array.mean()) if len(array) else None,
        max=float(array.max()) if len(array) else None,
        **_all_levels(points),
    )


def _all_levels(points: dict[str, Quantile]) -> dict[str, Quantile | None]:
    return {name: points.get(name) for name in LEVELS}


def _supported_levels(count: int) -> dict[str, float]:
    """Quantiles that `count` values can speak of: at least one value is expected beyond each."""
    return {name: level for name, level in LEVELS.items() if count * (1 - level) >= 1 - 1e-9}


def _with_intervals(levels: dict[str, float], points: Floats, resampled: Floats) -> dict[str, Quantile]:
    lows, highs = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return {
        name: Quantile(value=float(point), low=float(min(low, point)), high=float(max(high, point)))
        for name, point, low, high in zip(levels, points, lows, highs, strict=True)
    }


def _block_resamples(count: int, seed: int) -> Iterable[NDArray[np.int64]]:
    """Indices of circular block-bootstrap resamples, one per row, in batches of bounded size."""
    rng = np.random.default_rng(seed)
    length = max(1, round(count ** (1 / 3)))
    num_blocks = -(-count // length)
    left = min(MAX_RESAMPLES, max(MIN_RESAMPLES, RESAMPLED_VALUES // count))
    while left > 0:
        rows = min(left, max(1, BATCH_VALUES // count))
        starts = rng.integers(count, size=(rows, num_blocks, 1))
        yield ((starts + np.arange(length)) % count).reshape(rows, -1)[:, :count]
        left -= rows


def is_good(record: Record, slo: Slo | None) -> bool:
    """Complete, and within every limit (a limit on something the request does not have, as TPOT of one token, is
    met)."""
    if record.outcome is not Outcome.OK:
        return False
    if slo is None:
        return True
    pairs = ((record.ttft_s, slo.ttft_s), (record.tpot_s, slo.tpot_s), (record.e2e_s, slo.e2e_s))
    return all(value is None or limit is None or value <= limit for value, limit in pairs)


def counts_for_slo(record: Record) -> bool:
    """Whether the server should have served it in full: all but planned disconnects, and what was never asked of it."""
    return record.outcome is Outcome.OK or record.outcome.is_failure


def share_interval(good: Sequence[bool]) -> tuple[float, float]:
    """95 % interval of the share of good ones, given in order of time.

    Wilson's interval with n_eff = n / max(1, D), D = b·Var(batch means) / (p(1 − p)) over ⌊√n⌋ batches of b: when
    bad ones come in clumps, n of them say less than n independent ones would.
    """
    n = len(good)
    if n == 0:
        return 0.0, 1.0
    values = np.array(good, dtype=np.float64)
    p = float(values.mean())
    size = max(1, math.isqrt(n))
    means = values[: n // size * size].reshape(-1, size).mean(axis=1)
    spread = float(means.var(ddof=1)) if len(means) > 1 else 0.0
    design_effect = size * spread / (p * (1 - p)) if 0 < p < 1 else 1.0
    return wilson(p, n / max(1.0, design_effect))


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion p seen in n trials."""
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def jain(values: Sequence[float]) -> float | None:
    """Jain's fairness index (1984): (Σx)² / (n·Σx²), 1 when all are equal, 1/n when one has everything."""
    squares = sum(value**2 for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0 else None


def gap_cv(starts_s: Sequence[float]) -> float | None:
    """Coefficient of variation of the gaps; None with fewer than two gaps or no time between them."""
    gaps = np.diff(np.array(starts_s))
    if len(gaps) < 2 or gaps.mean() == 0:  # noqa: PLR2004 - one gap does not vary
        return None
    return float(gaps.std() / gaps.mean())
