"""Our own law as a controller of the simulated fleet, and the same law told the future."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.cost_model import Mix, capacity
from service.autoscaling.forecast import needed_replicas
from service.autoscaling.memory import Memory
from service.autoscaling.policy import Decision, decide
from service.autoscaling.signals import ReplicaState
from service.autoscaling.simulator.fleet import FleetConfig, FleetView
from service.autoscaling.simulator.workload import Workload


class Headcount:
    """`decide`, once a second. With `restarts`, instants at which the controller dies and comes back with what its
    memory's JSON holds."""

    def __init__(
        self,
        config: AutoscalingConfig,
        *,
        restarts: tuple[float, ...] = (),
        on_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        self._config = config
        self._memory = Memory.fresh(config)
        self._restarts = list(restarts)
        self._on_decision = on_decision

    def desired(self, view: FleetView) -> int:
        if self._restarts and view.snapshot.at >= self._restarts[0]:
            del self._restarts[0]
            self._memory = Memory.from_json(self._memory.to_json(), self._config)
        decision = decide(view.snapshot, self._config, self._memory)
        self._memory = decision.memory
        if self._on_decision is not None:
            self._on_decision(decision)
        return decision.desired


class PerfectForecast:
    """The need of every second known ahead, from the true lengths and costs. A replica is there for whatever comes
    within a cold start, and stays for what comes within two: a shorter gap costs less than a start.

    `margin` scales the need; the best one in hindsight stands for a perfect choice of it.
    """

    def __init__(self, config: AutoscalingConfig, fleet: FleetConfig, workload: Workload, margin: float = 1.0) -> None:
        self._config = config
        need = margin * _need_by_second(config, fleet, workload)
        self._start_s = int(np.ceil(fleet.cold_start_s * (1.0 + fleet.cold_start_jitter))) + 1
        self._need = np.concatenate([need, np.zeros(2 * self._start_s + 2)])

    def desired(self, view: FleetView) -> int:
        second = min(int(view.snapshot.at), len(self._need) - 2)
        asked = sum(r.state is not ReplicaState.DRAINING for r in view.snapshot.replicas)
        soon = float(self._need[second : second + self._start_s + 1].max())
        later = float(self._need[second : second + 2 * self._start_s + 1].max())
        wanted = max(np.ceil(soon), min(asked, np.ceil(later)))
        return max(self._config.min_replicas, min(self._config.max_replicas, int(wanted)))


def _need_by_second(config: AutoscalingConfig, fleet: FleetConfig, workload: Workload) -> NDArray[np.float64]:
    """Replicas that serve the work of each second in time, prefix hits as an endless cache would have them."""
    requests = workload.requests
    arrivals = np.array([r.arrival_at for r in requests])
    prompts = np.array([float(r.num_prompt_tokens) for r in requests])
    outputs = np.array([float(r.num_output_tokens) for r in requests])
    mix = Mix(float(prompts.mean()), float(prompts.mean()), float(outputs.mean()))
    carried = capacity(fleet.cost, mix, config.slo, fleet.limits)
    num_seconds = int(arrivals[-1]) + 2
    prefill = np.bincount(arrivals.astype(int), prompts * carried.prefill_s_per_token, num_seconds)
    # The decode work of a request spreads evenly over the time its output takes: +rate at its start, -rate at its end.
    rate = carried.decode_s / carried.decode_span_s
    ends = np.minimum(arrivals + outputs * carried.step_s, num_seconds - 1).astype(int)
    steps = np.bincount(arrivals.astype(int), minlength=num_seconds) - np.bincount(ends, minlength=num_seconds)
    padded = np.concatenate([np.zeros(60), prefill + rate * np.cumsum(steps)])
    need = [needed_replicas(padded[i : i + 60], config.slo.ttft_s) for i in range(1, num_seconds + 1)]
    return np.array(need)
