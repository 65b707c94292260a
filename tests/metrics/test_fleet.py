"""The fleet's own metrics."""

from __future__ import annotations

import math
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import catalog
from service.metrics.exposition import render
from service.metrics.fleet import FleetCollector, FleetStats

TERMS = {
    "num_ready": 3.0,
    "num_starting": 1.0,
    "num_lost": 0.0,
    "num_unknown": 1.0,
    "work": 2.5,
    "need": 3.0,
    "growth": 0.5,
    "queue_s": 0.25,
    "cold_start_s": 4.0,
    "forecast_error": None,
}
STATS = FleetStats(
    min_replicas=1,
    max_replicas=8,
    price_per_replica_hour=2.0,
    num_held=0.0,
    decision_age_s=0.5,
    desired=4.0,
    terms=TERMS,
    cost={"replica_s": 120.0, "saved_replica_s": 30.0, "num_up": 2, "num_down": 1},
    num_decisions=77,
    num_fallbacks=5,
)


def samples(stats: FleetStats) -> dict[tuple[str, tuple[str, ...]], float]:
    body, _ = render(CollectorRegistry(), FleetCollector(stats))
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_the_status_becomes_figures() -> None:
    """Each term where it belongs; costs at the price of a replica."""
    found = samples(STATS)
    assert found["headcount_desired_replicas", ()] == 4
    assert found["headcount_replicas", ("ready",)] == 3
    assert found["headcount_replicas", ("starting",)] == 1
    assert found["headcount_need_replicas", ()] == 3.5
    assert found["headcount_cost_per_hour", ()] == 8.0
    assert found["headcount_replica_seconds_total", ()] == 120.0
    assert found["headcount_scale_events_total", ("down",)] == 1
    assert found["headcount_decisions_total", ("fallback",)] == 5


def test_every_fleet_metric_of_the_catalog_is_told() -> None:
    """With its labels, and nothing beside it."""
    told = {name for name, _ in samples(STATS)}
    assert told == {metric.name for metric in catalog.CATALOG if metric.of_fleet}


def test_what_is_unknown_is_not_zero() -> None:
    """Without a decision there are bounds only; a counter that fell to 0 would count all of itself again."""
    found = samples(FleetStats(min_replicas=0, max_replicas=4, price_per_replica_hour=1.0))
    assert math.isnan(found["headcount_desired_replicas", ()])
    assert math.isnan(found["headcount_cost_per_hour", ()])
    assert math.isnan(samples(STATS)["headcount_forecast_error_replicas", ()])
    assert found["headcount_max_replicas", ()] == 4
    assert [name for name, _ in found if name.endswith("_total")] == []


def test_they_stand_beside_what_processes_share(tmp_path: Path) -> None:
    """One body of both."""
    (tmp_path / "metrics").mkdir()
    body, _ = render(tmp_path / "metrics", FleetCollector(STATS))
    assert b"headcount_desired_replicas 4.0" in body
