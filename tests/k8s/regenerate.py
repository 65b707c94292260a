"""Write anew what is made from something else: `python -m tests.k8s.regenerate`.

k8s/components/monitoring/prometheusrule.yaml has the rules of deploy/prometheus, which kustomize cannot put into a
resource by itself; k8s/README.md has the table of sizes; k8s/base/haproxy-defaults.cfg has what HAProxy must do beyond
what Serve tells it, the value of a variable in several lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from service.fleet.haproxy import balance_and_more
from tests.k8s.sizing import table

ROOT = Path(__file__).parents[2]
SOURCES = ("rules.yaml", "alerts.yaml")
TARGET = ROOT / "k8s" / "components" / "monitoring" / "prometheusrule.yaml"
PAGE, MARK = ROOT / "k8s" / "README.md", "<!-- sizes -->"
HAPROXY = ROOT / "k8s" / "base" / "haproxy-defaults.cfg"
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


def page_with_sizes() -> str:
    before, _, after = PAGE.read_text().split(MARK)
    return f"{before}{MARK}\n{table()}\n{MARK}{after}"


if __name__ == "__main__":
    TARGET.write_text(prometheus_rule())
    HAPROXY.write_text(balance_and_more())
    PAGE.write_text(page_with_sizes())
