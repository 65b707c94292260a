"""Which of our metrics a PromQL expression names."""

from __future__ import annotations

import re

from service.metrics.catalog import CATALOG, Kind

_NAME = re.compile(r"(?<![\w:.-])(?:vllm:|headcount[_:]|http_)[a-z0-9_:]+")
_LEVEL = "headcount:"  # begins what rules record

FAMILIES = {metric.name: metric for metric in CATALOG}
# Every series that can be queried: histograms and summaries have several.
SERIES = {
    metric.name + suffix: metric
    for metric in CATALOG
    for suffix in {
        Kind.HISTOGRAM: ("_bucket", "_sum", "_count"),
        Kind.SUMMARY: ("_sum", "_count"),
    }.get(metric.kind, ("",))
}


def names_in(expression: str) -> set[str]:
    """Names that look like ours, recorded ones included, whether or not they exist."""
    return set(_NAME.findall(expression))


def unknown_in(expression: str, recorded: set[str]) -> set[str]:
    """Of those, the ones that neither the catalog nor a rule brings."""
    return {name for name in names_in(expression) if name not in (recorded if name.startswith(_LEVEL) else SERIES)}
