"""Ways to choose a replica for a request, for the simulated fleet of `service.bench.routing`.

Those with `Exact` knowledge see into the engines at that instant, which nothing real can. Those with `Reported`
knowledge have what a router in a process of its own could: what each engine said at most `period_s` ago, and what was
sent since.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from math import ceil
from random import Random
from typing import NamedTuple, Protocol

from service.autoscaling.signals import EngineLimits
from service.autoscaling.simulator.fleet import Controller, Fleet, FleetConfig, FleetReplica
from service.autoscaling.simulator.workload import PREFIX_BLOCK_TOKENS, SimulatedRequest
from service.engine.synthetic import StepCost

BALANCE_FACTOR = 1.25  # of a bounded hash: the most requests of one replica, over the mean
UNBOUNDED = 1 << 30  # requests of a replica: the engine has the queue (docs/decisions/0003)
MAX_WEIGHT = 256  # of a server in HAProxy


class Router(Protocol):
    def choose(self, request: SimulatedRequest, replicas: Sequence[FleetReplica], at: float) -> FleetReplica: ...


class View(NamedTuple):
    """A replica as a router sees it."""

    num_prefill_left: int
    num_running: int
    num_ongoing: int
    num_context_tokens: int


class Knowledge(Protocol):
    def view(self, replica: FleetReplica, at: float) -> View: ...

    def num_hit_tokens(self, replica: FleetReplica, request: SimulatedRequest) -> int: ...

    def sent(self, replica: FleetReplica, request: SimulatedRequest, num_new: int) -> None: ...


class Exact:
    """The engines themselves are asked."""

    def __init__(self, limits: EngineLimits) -> None:
        self._kv_tokens = limits.kv_tokens

    def view(self, replica: FleetReplica, at: float) -> View:  # noqa: ARG002 - the engine is at that instant
        engine = replica.engine
        num_context_tokens = round(engine.kv_usage * self._kv_tokens)
        return View(engine.num_prefill_left, engine.num_running, engine.num_ongoing, num_context_tokens)

    def num_hit_tokens(self, replica: FleetReplica, request: SimulatedRequest) -> int:
        return replica.engine.num_hit_tokens(request)

    def sent(self, replica: FleetReplica, request: SimulatedRequest, num_new: int) -> None:
        """The engine knows."""


class Reported:
    """What each engine said last, and what was sent to it since; prefixes that were sent, as many as a cache holds."""

    def __init__(self, limits: EngineLimits, period_s: float) -> None:
        self._exact = Exact(limits)
        self._num_blocks = limits.kv_tokens // PREFIX_BLOCK_TOKENS
        self._period_s = period_s
        self._period = -1
        self._views: dict[str, View] = {}
        self._prefixes: dict[str, OrderedDict[int, None]] = {}

    def view(self, replica: FleetReplica, at: float) -> View:
        period = int(at / self._period_s)
        if period > self._period:
            self._period = period
            self._views.clear()
        if replica.replica_id not in self._views:
            self._views[replica.replica_id] = self._exact.view(replica, at)
        return self._views[replica.replica_id]

    def num_hit_tokens(self, replica: FleetReplica, request: SimulatedRequest) -> int:
        known = self._prefixes.get(replica.replica_id, ())
        blocks = request.prefix_ids
        num_hits = next((i for i, block in enumerate(blocks) if block not in known), len(blocks))
        return min(num_hits * PREFIX_BLOCK_TOKENS, request.num_prompt_tokens - 1)

    def sent(self, replica: FleetReplica, request: SimulatedRequest, num_new: int) -> None:
        view = self._views[replica.replica_id]
        self._views[replica.replica_id] = view._replace(
            num_prefill_left=view.num_prefill_left + num_new, num_ongoing=view.num_ongoing + 1
        )
        known = self._prefixes.setdefault(replica.replica_id, OrderedDict())
        for block in request.prefix_ids:
            known[block] = None
            known.move_to_end(block)
        while len(known) > self._num_blocks:
            known.popitem(last=False)


Score = Callable[[View, int], float]  # how bad it is to send a request with so many tokens to compute there


def connections(view: View, num_new: int) -> float:  # noqa: ARG001 - requests count, whatever they are
    return view.num_ongoing


def tokens_times_requests(view: View, num_new: int) -> float:
    """Tokens to compute, times requests to disturb: how the simulated fleet routes by itself."""
    return (view.num_prefill_left + num_new) * (view.num_ongoing + 1)


@dataclass(frozen=True, slots=True)
class StartTime:
    """Seconds until the first token: steps for the prompts ahead, and until enough requests have ended. A mean request
    has so many prompt and output tokens."""

    cost: StepCost
    limits: EngineLimits
    num_prompt_tokens: float
    num_output_tokens: float

    def __call__(self, view: View, num_new: int) -> float:
        cost, limits = self.cost, self.limits
        step_s = (
            cost.base_s + cost.per_sequence_s * view.num_running + cost.per_context_token_s * view.num_context_tokens
        )
        num_tokens = view.num_prefill_left + num_new
        num_steps = ceil(num_tokens / max(1, limits.max_num_batched_tokens - view.num_running))
        places = min(limits.max_num_seqs, limits.kv_tokens / (self.num_prompt_tokens + self.num_output_tokens))
        num_to_end = max(0.0, view.num_ongoing + 1 - places)
        num_steps_to_end = num_to_end * self.num_output_tokens / places
        return (num_steps + num_steps_to_end) * step_s + cost.per_prefill_token_s * num_tokens


class RoundRobin:
    def __init__(self) -> None:
        self._turn = count()

    def choose(self, request: SimulatedRequest, replicas: Sequence[FleetReplica], at: float) -> FleetReplica:  # noqa: ARG002
        return replicas[next(self._turn) % len(replicas)]


class Best:
    """The lowest score of all replicas, or of two drawn; equal ones take turns."""

    def __init__(self, score: Score, knowledge: Knowledge, *, sees_hits: bool = False, of_two: bool = False) -> None:
        self._score = score
        self._knowledge = knowledge
        self._sees_hits = sees_hits
        self._of_two = of_two
        self._random = Random(0)
        self._turn = count()

    def choose(self, request: SimulatedRequest, replicas: Sequence[FleetReplica], at: float) -> FleetReplica:
        drawn = self._random.sample(replicas, 2) if self._of_two else rotated(replicas, next(self._turn))
        scored = []
        for position, replica in enumerate(drawn):
            num_hits = self._knowledge.num_hit_tokens(replica, request) if self._sees_hits else 0
            num_new = request.num_prompt_tokens - num_hits
            scored.append((self._score(self._knowledge.view(replica, at), num_new), position, num_new))
        _, position, num_new = min(scored)
        self._knowledge.sent(drawn[position], request, num_new)
        return drawn[position]


class OwnSends:
    """Hears nothing from anyone: a queue of prompt tokens for each replica in the mind, which gets shorter at the speed
    of an engine, and the prefixes that were sent."""

    def __init__(self, limits: EngineLimits, prefill_s_per_token: float) -> None:
        self._prefixes = Reported(limits, period_s=float("inf"))
        self._prefill_s_per_token = prefill_s_per_token
        self._free_at: dict[str, float] = {}
        self._turn = count()

    def choose(self, request: SimulatedRequest, replicas: Sequence[FleetReplica], at: float) -> FleetReplica:
        starts = []
        ordered = rotated(replicas, next(self._turn))
        for position, replica in enumerate(ordered):
            num_new = request.num_prompt_tokens - self._prefixes.num_hit_tokens(replica, request)
            free_at = max(at, self._free_at.get(replica.replica_id, at))
            starts.append((free_at + num_new * self._prefill_s_per_token, position, num_new))
        start_at, position, num_new = min(starts)
        best = ordered[position]
        self._free_at[best.replica_id] = start_at
        self._prefixes.view(best, at)
        self._prefixes.sent(best, request, num_new)
        return best


class Weighted:
    """`leastconn` with weights that someone sets through HAProxy's own socket every `period_s`: the more prompt tokens
    wait at a replica, the lower. No hop, and nothing known of the request."""

    def __init__(self, period_s: float, num_prompt_tokens: float) -> None:
        self._period_s = period_s
        self._num_prompt_tokens = num_prompt_tokens  # of a mean request
        self._period = -1
        self._weights: dict[str, int] = {}
        self._turn = count()

    def choose(self, request: SimulatedRequest, replicas: Sequence[FleetReplica], at: float) -> FleetReplica:  # noqa: ARG002
        period = int(at / self._period_s)
        if period > self._period:
            self._period = period
            work = {r.replica_id: r.engine.num_prefill_left + self._num_prompt_tokens for r in replicas}
            least = min(work.values())
            self._weights = {name: max(1, round(MAX_WEIGHT * least / tokens)) for name, tokens in work.items()}
        return min(rotated(replicas, next(self._turn)), key=self._load)

    def _load(self, replica: FleetReplica) -> float:
        num_ongoing = replica.engine.num_ongoing
        # A new replica weighs as little as possible until it is looked at.
        return (num_ongoing + 1) / self._weights.get(replica.replica_id, 1) if num_ongoing else 0.0


class BoundedHash:
    """The replica that a block of the prompt belongs to, or the next one with room, as HAProxy's `balance hash` with
    `hash-balance-factor`. A prompt without that block: the fewest requests."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._fewest = Best(connections, Exact(EngineLimits()))

    def choose(self, request: SimulatedRequest, replicas: Sequence[FleetReplica], at: float) -> FleetReplica:
        if len(request.prefix_ids) <= self._block:
            return self._fewest.choose(request, replicas, at)
        key = request.prefix_ids[self._block]
        room = ceil(BALANCE_FACTOR * (1 + sum(r.engine.num_ongoing for r in replicas)) / len(replicas))
        ranked = sorted(replicas, key=lambda replica: blake2b(f"{key} {replica.replica_id}".encode()).digest())
        return next(replica for replica in ranked if replica.engine.num_ongoing < room)


class Several:
    """Routers that take turns and know nothing of each other: one may die."""

    def __init__(self, routers: Sequence[Router]) -> None:
        self._routers = routers
        self._turn = count()

    def choose(self, request: SimulatedRequest, replicas: Sequence[FleetReplica], at: float) -> FleetReplica:
        return self._routers[next(self._turn) % len(self._routers)].choose(request, replicas, at)


class RoutedFleet(Fleet):
    """A fleet behind a given router."""

    def __init__(self, config: FleetConfig, controller: Controller, router: Router) -> None:
        super().__init__(config, controller)
        self._router = router

    def _least_work(self, request: SimulatedRequest, at: float) -> FleetReplica | None:
        replicas = self._routable(at)
        for replica in replicas:
            replica.engine.run_until(at)
        return self._router.choose(request, replicas, at) if replicas else None


def rotated(replicas: Sequence[FleetReplica], turn: int) -> list[FleetReplica]:
    """Each is the first in turn, so that equal ones share what comes."""
    start = turn % len(replicas)
    return [*replicas[start:], *replicas[:start]]
