"""The autoscaling policy inside Serve's controller: a shim that reads the brain's last answer.

Serve calls it ten times a second in its control loop, where a slow policy delays and a failing one stops everything
else. So it only takes down what Serve knows and looks at a number; a thread of its own talks to the brain. When the
brain is silent, it falls back on the number of requests, and then only upwards.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ray.serve.config import AutoscalingContext

from service.fleet.brain_link import BrainLink
from service.fleet.observation import Answer, Observation, Starts

logger = logging.getLogger("ray.serve")

PERIOD_S = 1.0  # between two observations
STALE_S = 5.0  # age from which an answer no longer counts
FALLBACK_BATCH = 8.0  # requests that one replica is given while nothing is known of it


class Advisor(Protocol):
    """Whoever answers observations."""

    @property
    def answer(self) -> Answer | None:
        """The last answer; never blocks."""
        ...

    def tell(self, observation: Observation) -> None:
        """Never blocks."""
        ...


class ReplicaPolicy:
    """Serve makes one for each deployment of the application, with the settings as `HEADCOUNT_*` variables."""

    def __init__(
        self,
        *,
        variables: dict[str, str],
        advisor: Callable[[Mapping[str, str]], Advisor] = BrainLink,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._variables = variables
        self._make_advisor = advisor
        self._clock = clock
        self._advisor: Advisor | None = None  # made at the first call: Serve also makes policies that it never calls
        self._starts = Starts()
        self._told_at = -math.inf
        self._is_broken = False

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        try:
            return self._decide(context), {}
        except Exception:
            if not self._is_broken:  # once: this runs ten times a second
                logger.exception("the autoscaling policy failed; the fleet stays as it is until it works again")
            self._is_broken = True
            return context.target_num_replicas, {}

    def _decide(self, context: AutoscalingContext) -> int:
        if self._advisor is None:
            self._advisor = self._make_advisor(self._variables)
        at, target = self._clock(), context.target_num_replicas
        running = tuple(replica.to_full_id_str() for replica in context.running_replicas)
        self._starts.watch(at, target, frozenset(running), context.last_scale_up_time)
        answer = self._advisor.answer
        is_fresh = answer is not None and abs(at - answer.at) <= STALE_S
        if not 0.0 <= at - self._told_at < PERIOD_S:
            self._told_at = at
            self._advisor.tell(self._observation(context, at, running, num_fallbacks=int(not is_fresh)))
        if answer is not None and is_fresh:
            # Serve changes the target itself for a request that waits at zero: what was said before must not take the
            # new replica away.
            return answer.desired if answer.target == target else max(target, answer.desired)
        return max(target, self._fallback(context, answer))

    def _fallback(self, context: AutoscalingContext, answer: Answer | None) -> int:
        """What is asked of the fleet by the number of its requests alone."""
        batch = answer.batch if answer is not None and answer.batch >= 1.0 else FALLBACK_BATCH
        return math.ceil((context.total_num_requests or 0.0) / batch)

    def _observation(
        self, context: AutoscalingContext, at: float, running: tuple[str, ...], num_fallbacks: int
    ) -> Observation:
        numbers: dict[str, dict[str, float]] = {}
        for name, by_replica in (context.raw_metrics or {}).items():
            for replica, series in by_replica.items():
                if series:
                    numbers.setdefault(replica.to_full_id_str(), {})[name] = series[-1].value
        return Observation(
            at=at,
            target=context.target_num_replicas,
            running=running,
            numbers=numbers,
            num_held=context.total_queued_requests,
            starting_since=self._starts.since,
            start_times_s=self._starts.take_start_times(),
            num_fallbacks=num_fallbacks,
        )
