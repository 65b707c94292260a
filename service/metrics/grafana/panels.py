"""Panels and dashboards as values, and their form in Grafana's JSON (schema 39, Grafana 10 and later)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from service.metrics.catalog import DECISION_AGE, NUM_RUNNING

WIDTH = 24  # of a dashboard, in Grafana's grid
ROW_HEIGHT = 1
TAG = "headcount"

Json = dict[str, Any]


class Unit(StrEnum):
    """Grafana's names of units."""

    NUMBER = "short"
    SECONDS = "s"
    RATIO = "percentunit"
    PER_SECOND = "cps"
    REQUESTS_PER_SECOND = "reqps"
    BYTES_PER_SECOND = "Bps"


class Form(StrEnum):
    LINES = "timeseries"
    FIGURE = "stat"
    HEATMAP = "heatmap"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Query:
    """`legend` may name labels, `{{handler}}`."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """`help` is shown at the title. `good_from`: a figure is green from there on, and red below."""

    title: str
    help: str
    queries: tuple[Query, ...]
    unit: Unit = Unit.NUMBER
    form: Form = Form.LINES
    is_stacked: bool = False
    good_from: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        return (4, 4) if self.form is Form.FIGURE else (8, 8)


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """`name` is its file and part of its address."""

    name: str
    title: str
    help: str
    rows: tuple[Row, ...]

    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels

    def to_json(self) -> Json:
        return {
            "uid": f"{TAG}-{self.name}",
            "title": f"Headcount: {self.title}",
            "description": self.help,
            "tags": [TAG],
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "annotations": {"list": []},
            "links": [
                {"type": "dashboards", "title": "Headcount", "tags": [TAG], "keepTime": True, "includeVars": True}
            ],
            "templating": {"list": _variables()},
            "panels": list(_laid_out(self.rows)),
        }


def _variables() -> list[Json]:
    """What the viewer chooses. Outside Kubernetes there is no namespace, which `.*` matches."""
    source = {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}
    current = {"text": "Prometheus", "value": "prometheus"}
    return [
        source | {"current": current, "refresh": 1},
        _label_variable("namespace", "Namespace", f"label_values({DECISION_AGE.name}, namespace)"),
        _label_variable("model_name", "Model", f"label_values({NUM_RUNNING.name}, model_name)"),
    ]


def _label_variable(name: str, label: str, query: str) -> Json:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": _source(),
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _source() -> Json:
    return {"type": "prometheus", "uid": "${datasource}"}


def _laid_out(rows: tuple[Row, ...]) -> Iterator[Json]:
    """Rows one below the other; in a row, panels from left to right as far as there is room."""
    number, y = 0, 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": y, "w": WIDTH, "h": ROW_HEIGHT}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": place, "panels": []}
        x, y, height = 0, y + ROW_HEIGHT, 0
        for panel in row.panels:
            number += 1
            width, own_height = panel.size
            if x + width > WIDTH:
                x, y, height = 0, y + height, 0
            yield _panel(panel, number, {"x": x, "y": y, "w": width, "h": own_height})
            x, height = x + width, max(height, own_height)
        y += height


def _panel(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "type": str(panel.form),
        "title": panel.title,
        "description": panel.help,
        "datasource": _source(),
        "gridPos": place,
        "targets": [_target(query, index, panel.form) for index, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel.form),
        "transformations": _transformations(panel.form),
    }


def _target(query: Query, index: int, form: Form) -> Json:
    is_table, is_heatmap = form is Form.TABLE, form is Form.HEATMAP
    is_instant = form in {Form.TABLE, Form.FIGURE}
    return {
        "refId": chr(ord("A") + index),
        "datasource": _source(),
        "expr": query.expression,
        "legendFormat": "{{le}}" if is_heatmap else query.legend,
        "format": "table" if is_table else "heatmap" if is_heatmap else "time_series",
        "instant": is_instant,
        "range": not is_instant,
    }


def _defaults(panel: Panel) -> Json:
    defaults: Json = {"unit": str(panel.unit)}
    if panel.form is Form.LINES:
        stacking = {"mode": "normal" if panel.is_stacked else "none", "group": "A"}
        fill = 25 if panel.is_stacked else 0
        defaults |= {} if panel.unit is Unit.NUMBER else {"min": 0}
        defaults["custom"] = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": fill, "stacking": stacking}
    if panel.form is Form.FIGURE:
        steps: list[Json] = [{"color": "text", "value": None}]
        if panel.good_from is not None:
            steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.good_from}]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    return defaults


def _options(form: Form) -> Json:
    last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    options: dict[Form, Json] = {
        Form.LINES: {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        Form.FIGURE: {"reduceOptions": last, "colorMode": "value", "graphMode": "none", "textMode": "value"},
        Form.HEATMAP: {
            "calculate": False,
            "yAxis": {"unit": "s"},
            "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
            "cellGap": 1,
            "tooltip": {"mode": "single", "yHistogram": False},
        },
        Form.TABLE: {"showHeader": True, "cellHeight": "sm"},
    }
    return options[form]


def _transformations(form: Form) -> list[Json]:
    """A table shows labels, not the 1 that carries them."""
    hidden = {"Time": True, "Value": True}
    return [{"id": "organize", "options": {"excludeByName": hidden}}] if form is Form.TABLE else []
