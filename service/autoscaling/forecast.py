"""Demand in replicas: what arrives, what that will need, and what it needs now at the least.

Work arrives in two parts: a prompt is due at once, its output spreads over the time it takes to generate. The second
part is therefore an exponential average over that time. A fleet of N replicas serves all of it within the TTFT target
exactly when, over every span of d seconds, no more than N · (d + slack) replica-seconds of work arrive: so the need is
the largest such quotient over spans that end now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.autoscaling.cost_model import Capacity

Array = NDArray[np.float64]

HISTORY_S = 180
MISSES_S = 60  # over which it is asked what other fleets would have missed
_SPANS_S = np.array([1, 2, 3, 5, 8, 13, 21, 34, 55])
_SHORTEST_S, _LONGEST_S = 10.0, 30.0  # windows in which requests are counted to look one cold start ahead
_TREND_BIN_S = 5
_TREND_T = 2.5  # a slope less certain than so many standard errors is noise
_TREND_DAMPING = 0.8


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What came in since the last snapshot. Rates are over `dt` seconds."""

    dt: float
    num_requests: float
    num_uncached_tokens: float


@dataclass(frozen=True, slots=True)
class Demand:
    """The last HISTORY_S seconds of work (replicas; newest last; nan before the beginning), of requests/s, and of the
    replicas that were forecast then for one cold start later."""

    work: Array
    requests: Array
    forecasts: Array
    decode: float = 0.0  # work of outputs under way, replicas

    @classmethod
    def fresh(cls) -> Demand:
        unknown = np.full(HISTORY_S, np.nan)
        return cls(unknown, unknown, unknown)

    def observe(self, arrivals: Arrivals, capacity: Capacity, ahead_s: float) -> Demand:
        """One more snapshot; a longer pause counts as so many seconds of its average. Outputs are reckoned with as they
        will be `ahead_s` from now, if requests keep coming as lately and that is more."""
        dt = arrivals.dt
        rate, tokens_per_s = arrivals.num_requests / dt, arrivals.num_uncached_tokens / dt
        fade = math.exp(-dt / max(1.0, capacity.decode_span_s))
        decode = fade * self.decode + (1.0 - fade) * rate * capacity.decode_s
        num_seconds = _num_seconds(dt)
        requests = _push(self.requests, rate, num_seconds)
        coming = _mean(requests[-round(min(_LONGEST_S, max(_SHORTEST_S, ahead_s))) :]) * capacity.decode_s
        fade = math.exp(-ahead_s / max(1.0, capacity.decode_span_s))
        ahead = max(decode, fade * decode + (1.0 - fade) * coming)
        return replace(
            self,
            work=_push(self.work, tokens_per_s * capacity.prefill_s_per_token + ahead, num_seconds),
            requests=requests,
            decode=decode,
        )

    @property
    def last_work(self) -> float:
        return _mean(self.work[-1:])

    @property
    def last_requests(self) -> float:
        return _mean(self.requests[-1:])

    def mean_work(self, span_s: int) -> float:
        return _mean(self.work[-span_s:])

    def mean_requests(self, span_s: int) -> float:
        return _mean(self.requests[-span_s:])

    def expect(self, num_replicas: float, dt: float) -> Demand:
        """What is forecast now."""
        return replace(self, forecasts=_push(self.forecasts, num_replicas, _num_seconds(dt)))

    def forecast_error(self, num_replicas: float, ahead_s: float) -> float:
        """What is needed now less what was forecast `ahead_s` ago; nan while nothing had been."""
        then = float(self.forecasts[-min(HISTORY_S, max(1, round(ahead_s)))])
        return num_replicas - then

    def misses(self, num_replicas: int, slack_s: float) -> float:
        """Requests of the last MISSES_S seconds that so many replicas would have served late."""
        work, requests = np.nan_to_num(self.work[-MISSES_S:]), np.nan_to_num(self.requests[-MISSES_S:])
        total = np.cumsum(work - num_replicas)
        queue = total - np.minimum(0.0, np.minimum.accumulate(total))
        return float(requests @ late_share(queue, slack_s * max(0.5, num_replicas)))

    def need(self, slack_s: float) -> float:
        """Replicas that serve all recent work within `slack_s` of its arrival."""
        return needed_replicas(np.nan_to_num(self.work), slack_s)

    def trend(self, window_s: float) -> float:
        """Growth of work in replicas per second, damped, if it is upward and certain; else 0."""
        num_bins = int(min(HISTORY_S, max(60.0, window_s))) // _TREND_BIN_S
        y = self.work[-num_bins * _TREND_BIN_S :].reshape(num_bins, _TREND_BIN_S).mean(axis=1)
        if np.isnan(y).any():
            return 0.0
        x = np.arange(num_bins) * float(_TREND_BIN_S)
        x -= x.mean()
        sxx = float(x @ x)
        slope = float(x @ y) / sxx
        residual = y - y.mean() - slope * x
        error = math.sqrt(float(residual @ residual) / (num_bins - 2) / sxx)
        return _TREND_DAMPING * slope if slope > _TREND_T * error else 0.0


def needed_replicas(work: Array, slack_s: float) -> float:
    """Replicas for which no queue is longer than `slack_s` after the given seconds of work (replicas, newest last)."""
    sums = np.cumsum(work[: -_SPANS_S[-1] - 1 : -1])
    return float((sums[_SPANS_S - 1] / (_SPANS_S + slack_s)).max())


def late_share(queue: Array, room: Array | float) -> Array:
    """Of the requests that meet a queue: all where its mean delay is half again what there is room for, none where it
    is half of that."""
    return np.clip(queue / room - 0.5, 0.0, 1.0)


def _num_seconds(dt: float) -> int:
    return max(1, min(HISTORY_S, round(dt)))


def _push(values: Array, value: float, times: int) -> Array:
    return np.concatenate([values[times:], np.full(times, value)])


def _mean(values: Array) -> float:
    """Of what is known; nan stands at the beginning only."""
    if not math.isnan(values[0]):
        return float(values.sum()) / len(values)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
