"""The policies that others ship, as controllers of the simulated fleet, each with its own knobs.

Written from their documentation: Ray Serve's request-based policy, Knative's KPA, the HPA loop on utilisation, KEDA on
queue length or on running and waiting requests, WVA-like saturation thresholds, and llm-d's token-aware and SLO-aware
rules. They read the same snapshots as ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.signals import ReplicaState, Snapshot
from service.autoscaling.simulator.fleet import FleetView
from service.autoscaling.simulator.sequence import prefill_alone_s
from service.engine.synthetic import StepCost

_HPA_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """A snapshot in the terms of those who count requests."""

    num_ready: int
    num_asked: int  # ready or starting
    num_running: int
    num_waiting: int
    num_prefill_left: int
    kv_used: float  # in caches of one replica
    busy_s: float  # since the fleet began, of the replicas that are there

    @classmethod
    def of(cls, snapshot: Snapshot) -> Load:
        stats = [r.stats for r in snapshot.replicas if r.stats is not None]
        asked = [r for r in snapshot.replicas if r.state is not ReplicaState.DRAINING]
        held, held_tokens = (
            (0, 0) if snapshot.ingress is None else (snapshot.ingress.num_held, snapshot.ingress.num_held_prompt_tokens)
        )
        return cls(
            num_ready=sum(r.state is ReplicaState.READY for r in asked),
            num_asked=len(asked),
            num_running=sum(s.num_running for s in stats),
            num_waiting=sum(s.num_waiting for s in stats) + held,
            num_prefill_left=sum(s.num_prefill_left for s in stats) + held_tokens,
            kv_used=sum(s.kv_usage for s in stats),
            busy_s=sum(s.steps.duration_s for s in stats),
        )

    @property
    def num_ongoing(self) -> int:
        return self.num_running + self.num_waiting


class Window:
    """The values of the last `span_s` seconds."""

    def __init__(self, span_s: int) -> None:
        self._values: deque[float] = deque(maxlen=span_s)

    def add(self, value: float) -> None:
        self._values.append(value)

    @property
    def mean(self) -> float:
        return sum(self._values) / len(self._values)

    @property
    def highest(self) -> float:
        return max(self._values)


class Static:
    """A fleet of one size."""

    def __init__(self, num_replicas: int) -> None:
        self._num_replicas = num_replicas

    def desired(self, view: FleetView) -> int:  # noqa: ARG002 - whatever there is to see
        return self._num_replicas


class RayServe:
    """Ongoing requests per replica over a look-back, with a delay for each direction."""

    def __init__(
        self,
        config: AutoscalingConfig,
        target: float,
        *,
        up_s: int = 30,
        down_s: int = 600,
        look_back_s: int = 30,
        every_s: int = 10,
    ) -> None:
        self._config, self._target, self._up_s, self._down_s, self._every_s = config, target, up_s, down_s, every_s
        self._window = Window(look_back_s)
        self._wish_s = 0  # how long the wish has pointed the same way: positive is up

    def desired(self, view: FleetView) -> int:
        load = Load.of(view.snapshot)
        self._window.add(load.num_ongoing)
        if view.snapshot.at % self._every_s:
            return load.num_asked
        wish = _bounded(self._window.mean / self._target, self._config)
        if wish > load.num_asked:
            self._wish_s = max(0, self._wish_s) + self._every_s
            return wish if self._wish_s > self._up_s else load.num_asked
        if wish < load.num_asked:
            self._wish_s = min(0, self._wish_s) - self._every_s
            return wish if -self._wish_s > self._down_s else load.num_asked
        self._wish_s = 0
        return load.num_asked


class Knative:
    """KPA: a stable window of 60 s and a panic window of 6 s, in which it only goes up."""

    def __init__(self, config: AutoscalingConfig, target: float) -> None:
        self._config, self._target = config, target
        self._stable, self._panic = Window(60), Window(6)
        self._panic_until = -1.0
        self._panic_peak = 0

    def desired(self, view: FleetView) -> int:
        load, at = Load.of(view.snapshot), view.snapshot.at
        self._stable.add(load.num_ongoing)
        self._panic.add(load.num_ongoing)
        if at % 2:
            return load.num_asked
        stable, panic = self._stable.mean / self._target, self._panic.mean / self._target
        if panic >= 2 * max(1, load.num_ready):
            if at > self._panic_until:
                self._panic_peak = 0
            self._panic_until = at + 60
        if at <= self._panic_until:
            self._panic_peak = max(self._panic_peak, load.num_asked, math.ceil(max(panic, stable)))
            return _bounded(self._panic_peak, self._config)
        return _bounded(max(stable, load.num_ready / 2), self._config)


class Hpa:
    """The Kubernetes loop: every 15 s, ceil(now · metric / target) unless within 10 %; down to the highest wish of 5
    minutes. `metric` is per ready replica, in units of its target."""

    def __init__(
        self, config: AutoscalingConfig, metric: Callable[[Load], float], *, every_s: int = 15, down_s: int = 300
    ) -> None:
        self._config, self._metric, self._every_s = config, metric, every_s
        self._window = Window(every_s)
        self._wishes = Window(max(1, down_s // every_s))

    def desired(self, view: FleetView) -> int:
        load = Load.of(view.snapshot)
        self._window.add(self._metric(load))
        if view.snapshot.at % self._every_s:
            return load.num_asked
        ratio = self._window.mean / max(1, load.num_ready)
        wish = load.num_asked if abs(ratio - 1.0) <= _HPA_TOLERANCE else math.ceil(load.num_ready * ratio)
        wish = min(wish, max(2 * load.num_asked, load.num_asked + 4))
        self._wishes.add(wish)
        return _bounded(wish if wish >= load.num_asked else min(load.num_asked, self._wishes.highest), self._config)


class Saturation:
    """Thresholds on cache and queue, one step at a time, and none while a replica starts."""

    def __init__(self, config: AutoscalingConfig, *, kv: float = 0.8, queue: float = 5.0) -> None:
        self._config, self._kv, self._queue = config, kv, queue

    def desired(self, view: FleetView) -> int:
        load = Load.of(view.snapshot)
        if view.snapshot.at % 15 or load.num_ready < load.num_asked:
            return load.num_asked
        n = max(1, load.num_ready)
        if load.kv_used / n > self._kv or load.num_waiting / n > self._queue:
            return _bounded(load.num_asked + 1, self._config)
        if n > 1 and load.kv_used / (n - 1) < self._kv and load.num_waiting / (n - 1) < self._queue / 2:
            return _bounded(load.num_asked - 1, self._config)
        return load.num_asked


class TokenAware:
    """llm-d: replicas for the uncomputed prompt tokens in flight to be computed within 1.5 s, and for the cache to be
    80 % full. Prefill throughput is calibrated on an idle replica."""

    def __init__(self, config: AutoscalingConfig, cost: StepCost, *, within_s: float = 1.5, kv: float = 0.8) -> None:
        self._within_s, self._kv, self._cost = within_s, kv, cost
        self._prefill_rate: float | None = None
        self._hpa = Hpa(config, self._wanted)

    def desired(self, view: FleetView) -> int:
        limits = view.snapshot.limits
        chunk = limits.max_num_batched_tokens
        self._prefill_rate = chunk / prefill_alone_s(chunk, self._cost, limits)
        return self._hpa.desired(view)

    def _wanted(self, load: Load) -> float:
        assert self._prefill_rate is not None
        return max(
            math.ceil(load.num_prefill_left / self._prefill_rate / self._within_s), math.ceil(load.kv_used / self._kv)
        )


@dataclass(slots=True)
class SloAware:
    """llm-d: the worse of P90 TTFT and TPOT over their targets, between 0.40 and 0.55 of which nothing moves."""

    config: AutoscalingConfig
    up_at: float = 0.55
    down_at: float = 0.40
    _recent: deque[tuple[float, float, float]] = field(default_factory=deque)
    _ratios: Window = field(default_factory=lambda: Window(45))
    _ups: Window = field(default_factory=lambda: Window(2))
    _downs: Window = field(default_factory=lambda: Window(12))

    def desired(self, view: FleetView) -> int:
        load, at = Load.of(view.snapshot), view.snapshot.at
        self._take(view, at)
        slo = self.config.slo
        ttft, tpot = (_p90([entry[i] for entry in self._recent]) for i in (1, 2))
        self._ratios.add(min(2.0, max(ttft / slo.ttft_s, tpot / slo.tpot_s)))
        if at % 15:
            return load.num_asked
        n, ratio = max(1, load.num_asked), self._ratios.mean
        wish = n
        if ratio > self.up_at:
            wish = n + math.ceil(n * max(0.0, ratio * load.num_ready / n / self.up_at - 1.0))
        elif ratio < self.down_at:
            wish = n - math.floor(n * (1.0 - ratio / self.down_at))
        self._downs.add(wish)
        if wish > n:
            return _bounded(min(wish, max(2 * n, n + 4)), self.config)
        if wish < n and at % 120 == 0:
            return _bounded(max(n - 1, min(n, self._downs.highest)), self.config)
        return n

    def _take(self, view: FleetView, at: float) -> None:
        for sequence in view.finished:
            assert sequence.first_token_at is not None
            assert sequence.last_token_at is not None
            request = sequence.request
            ttft_s = sequence.first_token_at - request.arrival_at
            tpot_s = (sequence.last_token_at - sequence.first_token_at) / max(1, request.num_output_tokens - 1)
            self._recent.append((at, ttft_s, tpot_s))
        while self._recent and self._recent[0][0] < at - 60:
            self._recent.popleft()


def _p90(values: list[float]) -> float:
    return sorted(values)[int(0.9 * (len(values) - 1))] if values else 0.0


def _bounded(wish: float, config: AutoscalingConfig) -> int:
    return max(config.min_replicas, min(config.max_replicas, math.ceil(wish - 1e-9)))


class Utilisation:
    """Busy replicas: the share of the last second that each spent in steps, summed."""

    def __init__(self, target: float) -> None:
        self._target = target
        self._last_busy_s = 0.0

    def __call__(self, load: Load) -> float:
        busy = max(0.0, load.busy_s - self._last_busy_s)
        self._last_busy_s = load.busy_s
        return min(busy, load.num_ready) / self._target
