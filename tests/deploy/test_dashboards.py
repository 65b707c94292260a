"""Dashboards: made from the catalog, complete, and in the form that Grafana reads."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.metrics import catalog
from service.metrics.dashboards import main, texts
from service.metrics.grafana.boards import OBJECTIVE, dashboards
from service.metrics.grafana.query import rate, total
from tests.deploy.promql import SERIES, names_in, unknown_in

GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana"
BOARDS = {board.name: board.to_json() for board in dashboards()}
# On no dashboard: old names of others, what never changes, and what only a service with keys or adapters has.
UNSHOWN = {
    *(catalog.NUM_SWAPPED, catalog.KV_USAGE_ALIAS, catalog.TPOT_ALIAS, catalog.SLEEP_STATE),
    *(catalog.TENANT_REQUESTS, catalog.TENANT_TOKENS, catalog.LORA_REQUESTS),
}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [query.expression for board in dashboards() for panel in board.panels() for query in panel.queries]


def test_the_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    """`python -m service.metrics.dashboards deploy/grafana/dashboards` changes nothing; no other file is there."""
    main(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()}
    assert written == committed == texts()


def test_panels_show_the_whole_catalog_and_nothing_else() -> None:
    """Each metric is on a dashboard, old names aside."""
    shown = {SERIES[name] for expression in expressions() for name in names_in(expression)}
    assert set.union(*(unknown_in(expression, set()) for expression in expressions())) == set()
    assert set(catalog.CATALOG) - shown == UNSHOWN


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_a_place_of_their_own(name: str) -> None:
    """Ids are unique; no panel covers another or leaves the grid; each says what it shows."""
    board = BOARDS[name]
    places = [panel["gridPos"] for panel in board["panels"]]
    assert len({panel["id"] for panel in board["panels"]}) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert is_beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    assert all(panel["title"] and panel["description"].endswith(".") for panel in panels(board))


@pytest.mark.parametrize("name", BOARDS)
def test_queries_use_the_variables_of_their_dashboard(name: str) -> None:
    """Whatever is chosen above is in each query, and nothing undeclared is."""
    declared = {variable["name"] for variable in BOARDS[name]["templating"]["list"]}
    for panel in panels(BOARDS[name]):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval", "__range"}
            assert "namespace" in used <= declared, target["expr"]
            assert target["datasource"]["uid"] == "${datasource}"


def test_dashboards_link_to_each_other_and_differ() -> None:
    """One tag for all, one address each."""
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS) == 4
    for board in BOARDS.values():
        (link,) = board["links"]
        assert link["tags"] == board["tags"]


def test_a_query_refuses_labels_that_a_metric_does_not_have() -> None:
    """A mistake shows when the dashboards are made, not as an empty panel."""
    with pytest.raises(AssertionError, match="has no"):
        rate(catalog.GENERATION_TOKENS, "handler")
    with pytest.raises(AssertionError, match="has no"):
        total(catalog.REPLICAS, model_name="m")
    with pytest.raises(AssertionError):
        rate(catalog.NUM_RUNNING)


def test_objective_and_data_source_are_those_of_the_other_files() -> None:
    """The dashboard's objective is the alerts'; the data source that is provided is the one that is chosen at first."""
    rules = yaml.safe_load((GRAFANA.parent / "prometheus" / "rules.yaml").read_text())["groups"]
    budget = next(rule["expr"] for rule in rules[0]["rules"] if rule["record"] == "headcount:slo_error_budget:ratio")
    assert float(re.fullmatch(r"vector\((.+)\)", budget)[1]) == pytest.approx(1 - OBJECTIVE)  # type: ignore[index]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["uid"] == json.loads(texts()["service.json"])["templating"]["list"][0]["current"]["value"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/headcount.yaml").read_text())["providers"]
    assert provider["type"] == "file"
