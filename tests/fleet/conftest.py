"""One real server with the default model for the whole tier: two replicas behind HAProxy, one compute thread each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.server_process import ServerProcess, running_server


@pytest.fixture(scope="session")
def server(default_model_path: Path) -> Iterator[ServerProcess]:
    assert default_model_path.exists()
    with running_server(
        "--min-replicas", "2", "--max-replicas", "2", "--threads", "1", "--kv-cache-gib", "0.25"
    ) as running:
        yield running
