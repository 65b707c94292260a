"""A fleet in virtual time: requests arrive and are routed, replicas start, work, drain and fail, and once a second a
controller is asked how many there should be.

The router sends a request where it does the least damage: to the replica with the smallest product of prompt tokens to
compute and requests to disturb. At most `max_ongoing_requests` go to one replica; the rest is held in front, as are all
while there is no replica.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import NamedTuple, Protocol

from service.autoscaling.signals import (
    EngineLimits,
    IngressStats,
    Replica,
    ReplicaState,
    ReplicaStats,
    Snapshot,
)
from service.autoscaling.simulator.faults import Faults
from service.autoscaling.simulator.outcome import Outcome, Sample
from service.autoscaling.simulator.replica import SimulatedReplica
from service.autoscaling.simulator.sequence import SimulatedSequence, meets
from service.autoscaling.simulator.workload import SimulatedRequest, Workload
from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost

_COST = StepCost(base_s=0.025, per_sequence_s=5e-4, per_prefill_token_s=1e-4, per_context_token_s=1e-7)
_HELD_RETRY_S = 0.05  # how often the router looks again for room for a held request
_MAX_DRAIN_S = 3600.0  # after the trace, for what is still running
_NUM_START_TIMES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """The fleet that a policy steers. The defaults are the engine of the published tables: 25 ms a step + 0.5 ms a
    sequence + 0.1 ms a prompt token. What has waited for `max_wait_s` without being begun is turned away."""

    cost: StepCost = _COST
    limits: EngineLimits = field(default_factory=EngineLimits)
    slo: Slo = field(default_factory=Slo)
    cold_start_s: float = 15.0
    cold_start_jitter: float = 0.15  # of the cold start, either way, uniform
    initial_replicas: int = 1
    max_ongoing_requests: int = 64
    max_wait_s: float = inf
    seed: int = 0


class FleetView(NamedTuple):
    """What a controller sees: the snapshot, and the sequences that finished since it was last asked."""

    snapshot: Snapshot
    finished: list[SimulatedSequence]


class Controller(Protocol):
    """Says how many replicas there should be; asked once a second."""

    def desired(self, view: FleetView) -> int: ...


@dataclass(slots=True, eq=False)
class FleetReplica:
    """A place in the fleet: `ready_at` is when it starts to serve, infinity when it never will."""

    replica_id: str
    since: float
    ready_at: float
    engine: SimulatedReplica
    is_draining: bool = False
    num_finished: int = 0
    num_output_tokens: int = 0
    num_slo_misses: int = 0
    last_stats: ReplicaStats | None = None


class Fleet:
    """One run of one workload under one controller."""

    def __init__(self, config: FleetConfig, controller: Controller, faults: Faults | None = None) -> None:
        self._config = config
        self._controller = controller
        self._faults = faults or Faults()
        self._random = Random(config.seed)
        self._replicas: list[FleetReplica] = []
        self._held: deque[SimulatedSequence] = deque()
        self._num_held_prompt_tokens = 0
        self._num_started = 0
        self._turned_away: list[SimulatedRequest] = []  # since the last second
        self._start_times: deque[float] = deque(maxlen=_NUM_START_TIMES)
        self._desired = config.initial_replicas
        self._looked_at = 0.0  # when the router last looked for room

    def run(self, workload: Workload, on_progress: Callable[[float], None] | None = None) -> Outcome:
        """Play the trace, second by second, until every request has ended. The same arguments, the same result."""
        outcome = Outcome(workload)
        for _ in range(self._config.initial_replicas):
            self._start(-self._config.cold_start_s, self._config.cold_start_s)
        requests, position, second = workload.requests, 0, 0
        end_s = workload.duration_s
        while position < len(requests) or (self._has_work() and second < end_s + _MAX_DRAIN_S):
            second += 1
            while position < len(requests) and requests[position].arrival_at < second:
                request = requests[position]
                position += 1
                self._dispatch_held(request.arrival_at)
                if request.num_prompt_tokens + request.num_output_tokens > self._config.limits.kv_tokens:
                    outcome.num_refused += 1
                    continue
                self._hold(SimulatedSequence.of(request))
                self._dispatch(request.arrival_at)
            self._tick(float(second), outcome)
            if on_progress is not None and second % 60 == 0:
                on_progress(min(1.0, second / max(1.0, end_s)))
        return outcome

    def _tick(self, at: float, outcome: Outcome) -> None:
        self._dispatch_held(at)
        finished = self._collect(at)
        outcome.finished += finished
        outcome.turned_away += self._turned_away
        self._turned_away = []
        for index in self._faults.crashes_at(at):
            self._crash(index, at, outcome)
        view = FleetView(self._snapshot(at), finished)
        self._desired = self._controller.desired(view)
        self._scale(at)
        num_ongoing = len(self._held) + sum(replica.engine.num_ongoing for replica in self._replicas)
        outcome.samples.append(Sample(at, len(self._replicas), len(self._routable(at)), self._desired, num_ongoing))

    def _has_work(self) -> bool:
        return bool(self._held) or any(r.engine.num_ongoing for r in self._replicas)

    # routing

    def _routable(self, at: float) -> list[FleetReplica]:
        return [r for r in self._replicas if r.ready_at <= at and not r.is_draining]

    def _hold(self, sequence: SimulatedSequence) -> None:
        self._held.append(sequence)
        self._num_held_prompt_tokens += sequence.request.num_prompt_tokens

    def _dispatch_held(self, until: float) -> None:
        """While requests are held, look for room again and again, up to `until`."""
        while self._held and self._looked_at + _HELD_RETRY_S < until:
            self._looked_at += _HELD_RETRY_S
            for replica in self._replicas:
                replica.engine.run_until(self._looked_at)
            self._dispatch(self._looked_at)
        self._looked_at = until

    def _dispatch(self, at: float) -> None:
        while self._held:
            request = self._held[0].request
            is_late = at - request.arrival_at > self._config.max_wait_s
            replica = None if is_late else self._least_work(request, at)
            if replica is None and not is_late:
                return
            sequence = self._held.popleft()
            self._num_held_prompt_tokens -= request.num_prompt_tokens
            if replica is None:
                self._turned_away.append(request)
                continue
            replica.engine.run_until(at)
            replica.engine.add(sequence, at)

    def _least_work(self, request: SimulatedRequest, at: float) -> FleetReplica | None:
        best, best_score = None, 0.0
        for replica in self._replicas:
            engine = replica.engine
            if replica.ready_at > at or replica.is_draining:
                continue
            if engine.num_prefill_left:
                engine.run_until(at)
            if engine.num_ongoing >= self._config.max_ongoing_requests:
                continue
            num_new = request.num_prompt_tokens - (engine.num_hit_tokens(request) if request.prefix_ids else 0)
            score = (engine.num_prefill_left + num_new) * (engine.num_ongoing + 1)
            if best is None or score < best_score:
                best, best_score = replica, score
        return best

    # scaling

    def _start(self, at: float, start_s: float) -> None:
        ready_at = at + (inf if self._faults.is_stuck(self._num_started) else start_s)
        engine = SimulatedReplica(self._config.cost, self._config.limits, max(0.0, ready_at), self._config.max_wait_s)
        self._replicas.append(FleetReplica(f"replica-{self._num_started}", at, ready_at, engine))
        self._num_started += 1

    def _scale(self, at: float) -> None:
        """Bring the number of replicas that are not draining to what is desired."""
        for replica in self._replicas:
            if replica.ready_at <= at and replica.ready_at > at - 1.0 and replica.since >= 0.0:
                self._start_times.append(replica.ready_at - replica.since)
        staying = [r for r in self._replicas if not r.is_draining]
        jitter = self._config.cold_start_jitter
        for _ in range(self._desired - len(staying)):
            self._start(at, self._config.cold_start_s * (1.0 + self._random.uniform(-jitter, jitter)))
        if len(staying) > self._desired:
            for victim in sorted(staying, key=lambda r: _victim_order(r, at))[: len(staying) - self._desired]:
                victim.is_draining = True
        self._replicas = [r for r in self._replicas if not r.is_draining or r.engine.num_ongoing]

    def _crash(self, index: int, at: float, outcome: Outcome) -> None:
        """A ready replica is gone: what has its first token is cut, the rest is retried."""
        ready = self._routable(at)
        if not ready:
            return
        victim = ready[index % len(ready)]
        self._replicas.remove(victim)
        for sequence in victim.engine.take_all():
            if sequence.first_token_at is None:
                self._hold(SimulatedSequence.of(sequence.request))
            else:
                outcome.num_cut += 1

    # reporting

    def _collect(self, at: float) -> list[SimulatedSequence]:
        """Bring every replica to `at` and take what it finished."""
        slo, cost, limits = self._config.slo, self._config.cost, self._config.limits
        collected: list[SimulatedSequence] = []
        for replica in self._replicas:
            engine = replica.engine
            engine.run_until(at)
            finished = engine.totals.finished
            if finished:
                replica.num_finished += len(finished)
                replica.num_output_tokens += sum(s.request.num_output_tokens for s in finished)
                replica.num_slo_misses += sum(not meets(s, slo, cost, limits) for s in finished)
                collected += finished
                engine.totals.finished = []
            self._turned_away += engine.totals.turned_away
            engine.totals.turned_away = []
        return collected

    def _snapshot(self, at: float) -> Snapshot:
        is_silent = self._faults.is_silent(at)
        return Snapshot(
            at=at,
            replicas=tuple(self._describe(replica, at, is_silent) for replica in self._replicas),
            ingress=None
            if is_silent
            else IngressStats(at=at, num_held=len(self._held), num_held_prompt_tokens=self._num_held_prompt_tokens),
            limits=self._config.limits,
            start_times_s=tuple(self._start_times),
        )

    def _describe(self, replica: FleetReplica, at: float, is_silent: bool) -> Replica:
        if replica.ready_at > at:
            return Replica(replica_id=replica.replica_id, state=ReplicaState.STARTING, since=replica.since)
        if not is_silent:
            replica.last_stats = _stats(replica, at)
        state = ReplicaState.DRAINING if replica.is_draining else ReplicaState.READY
        return Replica(replica_id=replica.replica_id, state=state, since=replica.since, stats=replica.last_stats)


def _stats(replica: FleetReplica, at: float) -> ReplicaStats:
    engine, totals = replica.engine, replica.engine.totals
    return ReplicaStats(
        at=at,
        num_running=engine.num_running,
        num_waiting=engine.num_waiting,
        num_prefill_left=engine.num_prefill_left,
        kv_usage=engine.kv_usage,
        num_requests=totals.num_requests,
        num_prompt_tokens=totals.num_prompt_tokens,
        num_hit_tokens=totals.num_hit_tokens,
        num_finished=replica.num_finished,
        num_output_tokens=replica.num_output_tokens,
        num_slo_misses=replica.num_slo_misses,
        steps=totals.steps(),
    )


def _victim_order(replica: FleetReplica, at: float) -> tuple[bool, float]:
    """Those that do not serve yet go first, the last to be ready before others; then those with the fewest requests."""
    is_ready = replica.ready_at <= at
    return is_ready, replica.engine.num_ongoing if is_ready else -replica.ready_at
