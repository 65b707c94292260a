"""Our load tester against our service: both count the same, and answers under load are the answers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fleet.server_process import ServerProcess

pytestmark = pytest.mark.cluster


def test_the_smoke_scenario_agrees_with_the_server(server: ServerProcess, tmp_path: Path) -> None:
    """Every request is answered, both sides count the same, and each text is the same when repeated alone.

    Whether the run was valid or quick enough is this machine's business, not the test's.
    """
    out = tmp_path / "smoke.json"
    command = [sys.executable, "-m", "loadtest", "run", "smoke", "--url", server.url, "--json", str(out)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert out.exists(), finished.stderr
    result = json.loads(out.read_text())
    assert result["counts"]["failed"] == 0, finished.stdout
    assert result["counts"]["ok"] == result["counts"]["sent"] == result["counts"]["planned"] > 5
    assert [row["agrees"] for row in result["reconciliation"]] == [True, True, True], finished.stdout
    assert result["verification"]["equal"] == result["verification"]["checked"] > 5, finished.stdout
