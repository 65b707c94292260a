"""Write k8s/components/monitoring/prometheusrule.yaml anew: `python -m tests.k8s.regenerate`.

The rules are those of deploy/prometheus, which kustomize cannot put into a resource by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SOURCES = ("rules.yaml", "alerts.yaml")
TARGET = ROOT / "k8s" / "components" / "monitoring" / "prometheusrule.yaml"
HEADER = "# Made of deploy/prometheus/{rules,alerts}.yaml by `python -m tests.k8s.regenerate`.\n"


def prometheus_rule() -> str:
    groups: list[dict[str, Any]] = []
    for name in SOURCES:
        groups += yaml.safe_load((ROOT / "deploy" / "prometheus" / name).read_text())["groups"]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "headcount", "namespace": "headcount"},
        "spec": {"groups": groups},
    }
    return HEADER + yaml.safe_dump(rule, sort_keys=False, width=120)


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule())
