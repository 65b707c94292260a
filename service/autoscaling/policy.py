"""How many replicas there should be: a pure function of what is seen, what is wanted and what is remembered.

    need     replicas that serve the recent work in time, bursts included, as it will be one cold start from now
    backlog  replicas that a queue which is already too long deserves
    held     replicas that are not needed now and still cost less than their absence would

The largest of the three, within bounds. What is not known holds the fleet where it is: it may grow, never shrink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from service.autoscaling.backlog import Backlog
from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.cost_model import Capacity, capacity
from service.autoscaling.forecast import Arrivals
from service.autoscaling.holds import Holds, Prices, Spell
from service.autoscaling.ledger import Observed, read
from service.autoscaling.memory import Memory
from service.autoscaling.reason import Learned, Terms, explain
from service.autoscaling.signals import Snapshot

_RHO = 0.9  # share of its capacity that a replica is planned for: routers are not perfect
_QUEUE_RHO = 0.95  # the same where only queues count, which routing evens out better
_WARM_UP_S = 60.0  # of watching before the fleet may shrink
_TREND_LAG_S = 5.0  # by which a measured slope lags
_MOST_GROWTH = 0.2  # of the need: a step looks like a steep trend
_LOST_AFTER = 3.0  # cold starts that a replica may take before another is started for it
_START_QUANTILE = 0.7  # of measured cold starts: what to reckon with
_BACKLOG_WINDOW_S = 10
_WORK_WINDOW_S = 60
_PRIOR_WINDOW_S = 180
_LATE_SHARE = 0.35  # of the TTFT target: where the mean delay is so long, some are late already
_UNPRICED_HOLD_S = 300.0  # how long what was found is kept at least, while nothing is known of what its absence costs
_NEGLIGIBLE = 1e-3  # replicas


@dataclass(frozen=True, slots=True)
class Decision:
    """`desired` replicas, starting ones included and draining ones not; `terms` are the numbers that led there (see
    `Terms`, plus `load_with_one_less`)."""

    desired: int
    reason: str
    terms: dict[str, float]
    memory: Memory


@dataclass(frozen=True, slots=True)
class _Situation:
    """What one decision looks at: given, and worked out once."""

    at: float
    observed: Observed
    memory: Memory  # with the demand up to now
    capacity: Capacity
    cold_start_s: float
    config: AutoscalingConfig
    backlog: Backlog

    @property
    def num_asked(self) -> int:
        return len(self.observed.ready) + len(self.observed.starting)

    @property
    def slack_s(self) -> float:
        return self.config.slo.ttft_s

    def ages_s(self) -> list[float]:
        """Of the starting replicas, the oldest first."""
        return sorted((max(0.0, self.at - replica.since) for replica in self.observed.starting), reverse=True)


def decide(snapshot: Snapshot, config: AutoscalingConfig, memory: Memory) -> Decision:
    """The law. Deterministic; never raises, whatever the numbers in `snapshot`.

    Call it about once a second with the memory of the last call (`Memory.fresh(config)` at first).
    """
    observed, ledger = read(snapshot, memory.ledger)
    carried = capacity(memory.fit.cost, memory.mixture.mix, config.slo, snapshot.limits)
    cold_start_s = _cold_start_s(snapshot.start_times_s, config)
    at = snapshot.at if math.isfinite(snapshot.at) else memory.ledger.at or 0.0
    watched = replace(memory, ledger=ledger, watched_s=0.0)
    if observed.dt is not None:
        watched = _watch(watched, memory.watched_s + observed.dt, observed, carried, cold_start_s)
    situation = _Situation(
        at, observed, watched, carried, cold_start_s, config, _queue(observed, watched, carried, config)
    )
    need = _need(situation)
    holds = _hold(situation, need)
    terms = _terms(situation, need, holds)
    if observed.dt is not None:
        watched = replace(watched, demand=watched.demand.expect(terms.need + terms.growth, observed.dt))
    # What this second taught about costs and mixes serves the next one: within a decision more load is never less work.
    learned = replace(
        watched, holds=holds, fit=watched.fit.update(observed.steps), mixture=watched.mixture.observe(observed)
    )
    return Decision(terms.desired, explain(terms, config), terms.numbers(), learned)


def _cold_start_s(start_times_s: tuple[float, ...], config: AutoscalingConfig) -> float:
    known = sorted(time for time in start_times_s if math.isfinite(time) and time >= 0.0)
    return max(1.0, known[int(_START_QUANTILE * len(known))] if known else config.cold_start_prior_s)


def _watch(memory: Memory, watched_s: float, observed: Observed, carried: Capacity, cold_start_s: float) -> Memory:
    """The demand, one snapshot on."""
    assert observed.dt is not None
    num_uncached = observed.num_prompt_tokens * (1.0 - memory.mixture.hit_share)
    demand = memory.demand.observe(Arrivals(observed.dt, observed.num_requests, num_uncached), carried, cold_start_s)
    return replace(memory, demand=demand, watched_s=watched_s, trend=demand.trend(2.0 * cold_start_s))


def _queue(observed: Observed, memory: Memory, carried: Capacity, config: AutoscalingConfig) -> Backlog:
    return Backlog(
        queued=observed.num_prefill_ahead * (1.0 - memory.mixture.hit_share) * carried.prefill_s_per_token,
        work=memory.demand.mean_work(_BACKLOG_WINDOW_S),
        arrivals=memory.demand.mean_requests(_BACKLOG_WINDOW_S),
        slack_s=_LATE_SHARE * config.slo.ttft_s,
    )


def _need(situation: _Situation) -> float:
    """Replicas for what came in lately. Outputs that grow longer show first in how many sequences run: they may ask for
    one replica more than are ready, and no more, as after a queue all run full for a while."""
    observed, demand = situation.observed, situation.memory.demand
    occupied = observed.num_running / situation.capacity.batch
    need = max(demand.need(situation.slack_s), min(occupied, _RHO * (len(observed.ready) + 1)))
    if observed.num_held or observed.num_running:
        need = max(need, 2 * _NEGLIGIBLE)
    return need / _RHO


def _hold(situation: _Situation, need: float) -> Holds:
    """The books of the levels, one snapshot on."""
    observed, memory, config = situation.observed, situation.memory, situation.config
    holds = memory.holds
    if holds.watched_s == 0.0:
        holds = Holds.fresh(config.max_replicas, situation.num_asked, situation.cold_start_s)
    if observed.dt is None:
        return holds
    spell = Spell(need - _NEGLIGIBLE, memory.demand.last_work / _QUEUE_RHO, memory.demand.last_requests, observed.dt)
    return holds.observe(
        spell, Prices(situation.cold_start_s, situation.slack_s, config.replica_s_per_miss, config.refuses_late)
    )


def _terms(situation: _Situation, need: float, holds: Holds) -> Terms:
    observed, memory, config = situation.observed, situation.memory, situation.config
    cold_start_s, demand = situation.cold_start_s, memory.demand
    growth = min(_MOST_GROWTH * need, memory.trend * (cold_start_s + _TREND_LAG_S) / _RHO)
    # A level that was never priced is worth what would arrive, and miss, in one cold start.
    prior_s = max(_UNPRICED_HOLD_S, config.replica_s_per_miss * demand.mean_requests(_PRIOR_WINDOW_S) * cold_start_s)
    held = holds.num_held(prior_s, cold_start_s)
    backlog, drained_s = _backlog(situation, need)
    is_warming_up = memory.watched_s < _WARM_UP_S
    wanted = max(math.ceil(need + growth - _NEGLIGIBLE), backlog, held)
    num_lost = sum(age_s > _LOST_AFTER * cold_start_s for age_s in situation.ages_s())
    is_down_forbidden = is_warming_up or observed.num_unknown > 0
    if is_down_forbidden:
        wanted = max(wanted, situation.num_asked - num_lost)
    desired = max(config.min_replicas, min(config.max_replicas, wanted + num_lost))
    return Terms(
        num_ready=len(observed.ready),
        num_starting=len(observed.starting),
        desired=desired,
        work=demand.mean_work(_WORK_WINDOW_S),
        need=need,
        growth=growth,
        forecast_error=demand.forecast_error(need, cold_start_s),
        backlog=backlog,
        queue_s=situation.backlog.queued / max(1, len(observed.ready)),
        drained_s=drained_s,
        held=held,
        held_idle_s=holds.idle_of(held),
        held_for_s=holds.hold_of(held, prior_s, cold_start_s),
        held_price=holds.price_of(held),
        misses_with_one_less=demand.misses(max(0, desired - 1), situation.slack_s),
        misses_with_one_more=demand.misses(desired + 1, situation.slack_s),
        num_lost=num_lost,
        num_unknown=observed.num_unknown,
        is_warming_up=is_warming_up,
        is_down_forbidden=is_down_forbidden,
        learned=_learned(situation),
    )


def _learned(situation: _Situation) -> Learned:
    memory, cost, mix = situation.memory, situation.memory.fit.cost, situation.memory.mixture.mix
    return Learned(
        cold_start_s=situation.cold_start_s,
        requests_per_s=memory.demand.last_requests,
        prompt_tokens_per_request=mix.num_prompt_tokens,
        output_tokens_per_request=mix.num_output_tokens,
        hit_share=memory.mixture.hit_share,
        work_s_per_request=situation.capacity.work_s,
        step_base_s=cost.base_s,
        step_s_per_sequence=cost.per_sequence_s,
        step_s_per_prefill_token=cost.per_prefill_token_s,
        step_s_per_context_token=cost.per_context_token_s,
        batch=situation.capacity.batch,
    )


def _backlog(situation: _Situation, need: float) -> tuple[int, float]:
    """Replicas that the queue deserves and when they have drained it; zeros while it is in time."""
    backlog, config, cold_start_s = situation.backlog, situation.config, situation.cold_start_s
    num_ready = len(situation.observed.ready)
    if not backlog.is_late(num_ready):
        return 0, 0.0
    joins = [0.0] * num_ready + [max(1.0, cold_start_s - age_s) for age_s in situation.ages_s()]
    joins += [cold_start_s] * (config.max_replicas - len(joins))
    joins = joins[: config.max_replicas]
    base = max(1, min(config.max_replicas, math.ceil(need - _NEGLIGIBLE)))
    num_replicas = backlog.cheapest(joins, base=base, per_miss=config.replica_s_per_miss)
    return num_replicas, backlog.drained_in_s(joins[:num_replicas])
