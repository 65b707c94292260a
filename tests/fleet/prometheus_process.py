"""A real Prometheus in a process of its own: it scrapes one server each second under our rules, with time hastened."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.fleet.environment import free_port
from tests.fleet.server_process import STOP_DEADLINE_S

RULES = Path(__file__).parents[2] / "deploy" / "prometheus"
HASTE = 60  # a minute of the rules' windows passes in a second
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def hastened(rules: str) -> str:
    """Rules with all windows and waits divided by HASTE."""

    def divided(match: re.Match[str]) -> str:
        duration_s = int(match[2]) * _SECONDS[match[3]]
        return f"{match[1]}{duration_s * 1000 // HASTE}ms{match[4]}"

    return re.sub(r"(\[|for: )(\d+)([smhd])(\]|$)", divided, rules, flags=re.MULTILINE)


class Prometheus:
    """What can be asked of it. Values are finite: NaN is no answer."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=STOP_DEADLINE_S, trust_env=False)
        self.started_at = time.time()

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def values(self, expression: str) -> list[float]:
        """Of each series now."""
        found = self._ask("query", query=expression)["result"]
        return [value for series in found if math.isfinite(value := float(series["value"][1]))]

    def has_shown(self, expression: str) -> bool:
        """Whether a panel with this query, over all the time since the start, would show anything."""
        found = self._ask("query_range", query=expression, start=self.started_at, end=time.time(), step=1)["result"]
        return any(math.isfinite(float(value)) for series in found for _, value in series["values"])

    def firing(self) -> set[str]:
        """Names of alerts."""
        alerts = self._ask("alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def close(self) -> None:
        self._client.close()

    def _ask(self, what: str, **parameters: str | float) -> Any:
        answer = self._client.get(f"/api/v1/{what}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Scrapes `target`; its files are in `folder`."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed (Debian: apt-get install prometheus)")
    names = ["rules.yaml", "alerts.yaml"]
    for name in names:
        (folder / name).write_text(hastened((RULES / name).read_text()))
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": names,
        "scrape_configs": [{"job_name": "headcount", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yaml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    flags = [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        command = [program, f"--config.file={folder / 'prometheus.yaml'}", *flags]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + STOP_DEADLINE_S
        while not prometheus.is_ready():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(STOP_DEADLINE_S)
