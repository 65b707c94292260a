"""The fleet's own metrics, made from the autoscaler's status at each scrape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.metrics import catalog
from service.metrics.catalog import Kind

Values = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStats:
    """`terms` are those of the last decision; empty while there is none. `cost` and the numbers of decisions are sums;
    `cost` is None while they are not known. Prices are per hour of a replica."""

    min_replicas: int
    max_replicas: int
    price_per_replica_hour: float
    num_held: float = 0.0
    decision_age_s: float = math.nan
    desired: float = math.nan
    terms: Mapping[str, float | None] = field(default_factory=dict)
    cost: Mapping[str, float] | None = None
    num_decisions: int = 0
    num_fallbacks: int = 0


class FleetCollector(Collector):
    """Families of one `FleetStats`. What is unknown is never 0: a gauge is nan, a counter is left out, since one that
    falls to 0 and comes back would be counted twice."""

    def __init__(self, stats: FleetStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        for metric, values in _values(self._stats).items():
            if metric.kind is Kind.COUNTER and self._stats.cost is None:
                continue
            kind: Any = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family


def _values(stats: FleetStats) -> dict[catalog.Metric, Values]:
    terms, cost = stats.terms, stats.cost or {}

    def term(*names: str) -> float:
        values = [terms.get(name) for name in names]
        return math.nan if None in values else math.fsum(value for value in values if value is not None)

    ready, starting = term("num_ready"), term("num_starting")
    return {
        catalog.DESIRED_REPLICAS: {(): stats.desired},
        catalog.REPLICAS: {("ready",): ready, ("starting",): starting},
        catalog.MIN_REPLICAS: {(): stats.min_replicas},
        catalog.MAX_REPLICAS: {(): stats.max_replicas},
        catalog.LOST_REPLICAS: {(): term("num_lost")},
        catalog.UNKNOWN_REPLICAS: {(): term("num_unknown")},
        catalog.WORK_REPLICAS: {(): term("work")},
        catalog.NEED_REPLICAS: {(): term("need", "growth")},
        catalog.FORECAST_ERROR: {(): term("forecast_error")},
        catalog.QUEUE_TIME_OF_FLEET: {(): term("queue_s")},
        catalog.HELD_REQUESTS: {(): stats.num_held},
        catalog.COLD_START: {(): term("cold_start_s")},
        catalog.PRICE: {(): stats.price_per_replica_hour},
        catalog.COST_PER_HOUR: {(): (ready + starting) * stats.price_per_replica_hour},
        catalog.DECISION_AGE: {(): stats.decision_age_s},
        catalog.REPLICA_SECONDS: {(): cost.get("replica_s", 0.0)},
        catalog.SAVED_REPLICA_SECONDS: {(): cost.get("saved_replica_s", 0.0)},
        catalog.SCALE_EVENTS: {("up",): cost.get("num_up", 0), ("down",): cost.get("num_down", 0)},
        catalog.DECISIONS: {("brain",): stats.num_decisions, ("fallback",): stats.num_fallbacks},
    }
