"""Grafana dashboards, made from the catalog: a panel cannot name a metric that does not exist."""
