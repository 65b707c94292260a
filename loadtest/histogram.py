"""Gaps between output events, counted in logarithmic buckets: a run of any length takes the same memory.

A bucket's width is 1 % of its value, so a quantile is within 0.5 % of the exact one. The histogram is kept in `GROUPS`
parts, each for a stretch of the schedule, so that a bootstrap over the parts sees how gaps vary over the run, and
gaps of one request (which resemble each other) stay together.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

GROUPS = 32
LOWEST_S = 1e-5
GROWTH = 1.01
BUCKETS = 1 + math.ceil(math.log(1e3 / LOWEST_S) / math.log(GROWTH))  # up to 1000 s
_LOG_GROWTH = math.log(GROWTH)

Counts = NDArray[np.int64]


class GapHistogram:
    """`counts[group, bucket]`; histograms of several workers add up."""

    def __init__(self, num_requests: int, counts: Counts | None = None) -> None:
        self._num_requests = max(num_requests, 1)
        self.counts: Counts = np.zeros((GROUPS, BUCKETS), np.int64) if counts is None else counts

    def add(self, request_index: int, gap_s: float) -> None:
        """Count one gap of the request with this place in the schedule."""
        bucket = 0 if gap_s <= LOWEST_S else min(int(math.log(gap_s / LOWEST_S) / _LOG_GROWTH) + 1, BUCKETS - 1)
        self.counts[request_index * GROUPS // self._num_requests, bucket] += 1


def bucket_values() -> NDArray[np.float64]:
    """The value (seconds) that stands for each bucket: its geometric middle."""
    return np.asarray(LOWEST_S * GROWTH ** (np.arange(BUCKETS) - 0.5))


def quantiles(counts: Counts, levels: list[float]) -> list[float]:
    """Quantiles of one row of counts; the row must not be empty."""
    cumulative = np.cumsum(counts)
    ranks = np.ceil(np.array(levels) * cumulative[-1]).clip(1)
    return [float(value) for value in bucket_values()[np.searchsorted(cumulative, ranks)]]
