"""What watches the service in Kubernetes is what watches it elsewhere."""

from __future__ import annotations

import json

from tests.k8s.regenerate import TARGET, prometheus_rule
from tests.k8s.rendering import ROOT, environment, of_kind, render, worker_group


def test_the_rules_are_those_of_deploy() -> None:
    """`python -m tests.k8s.regenerate` makes it so."""
    assert TARGET.read_text() == prometheus_rule()


def test_every_dashboard_is_there() -> None:
    """Each as a ConfigMap that Grafana's sidecar finds, equal to its file."""
    files = {file.name: json.loads(file.read_text()) for file in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    found: dict[str, object] = {}
    for resource in of_kind(render("production"), "ConfigMap"):
        if resource["metadata"].get("labels", {}).get("grafana_dashboard") == "1":
            found |= {name: json.loads(text) for name, text in resource["data"].items()}
    assert files
    assert found == files


def test_the_replicas_metrics_are_where_prometheus_looks() -> None:
    """The port of the setting is the port of the pod, and the job's name is one that the alerts know."""
    resources = render("production")
    (container,) = worker_group(resources)["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert environment(resources)["HEADCOUNT_METRICS_PORT"] == str(ports["replica-metrics"])
    monitors = {each["metadata"]["name"] for each in of_kind(resources, "PodMonitor")}
    assert monitors == {"headcount-fleet", "headcount-replicas", "ray"}
