"""Fixtures every tier shares. The default model comes from the cache that `make model` fills; else tests skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fleet.server_process import ServerProcess, running_server

# Before torch is imported: small models run faster on one thread than on two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A machine that is busy for a second is no fault of the code.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

DEFAULT_MODEL_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's GGUF file."""
    cache = Path(os.environ.get("HEADCOUNT_CACHE_DIR", Path.home() / ".cache" / "headcount"))
    found = sorted(cache.glob(f"models/**/{DEFAULT_MODEL_GGUF}"))
    if not found:
        pytest.skip(f"the default model is not in {cache}: `make model` fetches it")
    return found[0]


@pytest.fixture(scope="session")
def server(default_model_path: Path) -> Iterator[ServerProcess]:
    """One real server with the default model for the whole tier: two replicas behind HAProxy, one thread each."""
    assert default_model_path.exists()
    with running_server(
        "--min-replicas", "2", "--max-replicas", "2", "--threads", "1", "--kv-cache-gib", "0.25"
    ) as running:
        yield running
