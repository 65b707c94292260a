"""PromQL over metrics of the catalog, for dashboards: of the namespaces and models that are chosen there.

`by` are labels to tell apart; keyword arguments are matchers, a value that begins with `~` is a regular expression.
Gauges that are the fleet's exist once, so that summing them over targets changes nothing.
"""

from __future__ import annotations

from service.metrics.catalog import Kind, Metric

RATE_WINDOW = "$__rate_interval"
WHOLE_RANGE = "$__range"
_NOT_LABELS = {"le"}  # of a histogram's buckets


def rate(metric: Metric, *by: str, **matchers: str) -> str:
    """Per second."""
    assert metric.kind is Kind.COUNTER, metric.name
    return _aggregate("sum", f"rate({_series(metric, '', matchers)}[{RATE_WINDOW}])", metric, by)


def increase(metric: Metric, *by: str, over: str = WHOLE_RANGE, **matchers: str) -> str:
    """How many within `over`, by default the time that the dashboard shows."""
    assert metric.kind is Kind.COUNTER, metric.name
    return _aggregate("sum", f"increase({_series(metric, '', matchers)}[{over}])", metric, by)


def total(metric: Metric, *by: str, **matchers: str) -> str:
    """A gauge, summed over replicas."""
    assert metric.kind is Kind.GAUGE, metric.name
    return _aggregate("sum", _series(metric, "", matchers), metric, by)


def largest(metric: Metric, *by: str, **matchers: str) -> str:
    """A gauge, of the replica where it is largest."""
    assert metric.kind is Kind.GAUGE, metric.name
    return _aggregate("max", _series(metric, "", matchers), metric, by)


def quantile(q: float, metric: Metric, **matchers: str) -> str:
    """Of a histogram, over the last minutes."""
    rates = f"rate({_series(metric, '_bucket', matchers)}[{RATE_WINDOW}])"
    return f"histogram_quantile({q:g}, {_aggregate('sum', rates, metric, ('le',))})"


def mean(metric: Metric, *by: str, **matchers: str) -> str:
    """Of a histogram or summary, over the last minutes."""
    return f"{summed(metric, *by, **matchers)} / {observed(metric, *by, **matchers)}"


def summed(metric: Metric, *by: str, **matchers: str) -> str:
    """What a histogram or summary adds up, per second."""
    assert metric.kind in {Kind.HISTOGRAM, Kind.SUMMARY}, metric.name
    return _aggregate("sum", f"rate({_series(metric, '_sum', matchers)}[{RATE_WINDOW}])", metric, by)


def observed(metric: Metric, *by: str, **matchers: str) -> str:
    """How often a histogram or summary is added to, per second."""
    assert metric.kind in {Kind.HISTOGRAM, Kind.SUMMARY}, metric.name
    return _aggregate("sum", f"rate({_series(metric, '_count', matchers)}[{RATE_WINDOW}])", metric, by)


def buckets(metric: Metric) -> str:
    """For a heat map: what fell into each bucket between two points."""
    assert metric.kind is Kind.HISTOGRAM, metric.name
    return _aggregate("sum", f"increase({_series(metric, '_bucket', {})}[{RATE_WINDOW}])", metric, ("le",))


def _aggregate(operator: str, vector: str, metric: Metric, by: tuple[str, ...]) -> str:
    assert set(by) - _NOT_LABELS <= {*metric.labels, "instance"}, f"{metric.name} has no {by}"
    return f"{operator} by ({', '.join(by)}) ({vector})" if by else f"{operator}({vector})"


def _series(metric: Metric, suffix: str, matchers: dict[str, str]) -> str:
    assert set(matchers) <= set(metric.labels), f"{metric.name} has no {matchers}"
    chosen = {"namespace": "~$namespace"}
    if "model_name" in metric.labels:
        chosen["model_name"] = "~$model_name"
    text = ", ".join(
        f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"'
        for label, value in {**chosen, **matchers}.items()
    )
    return f"{metric.name}{suffix}{{{text}}}"
