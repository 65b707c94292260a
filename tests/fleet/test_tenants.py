"""API keys on a real server: both applications ask for them, replicas share limits, the file may change."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.config import Settings
from service.errors import ConfigError
from service.fleet.server import check_keys
from tests.api.tenants import ADMIN, METRICS, entry, hash_of, headers_of, key_of, write
from tests.fleet.server_process import running_server

BODY = {"prompt": "abc", "max_tokens": 2}
COST = '{"base_s": 0.001}'


@pytest.mark.cluster
def test_keys_hold_in_the_whole_fleet(tmp_path: Path) -> None:
    """With two replicas behind HAProxy: nothing without a key, half of a limit from each replica, other keys at once
    when the file changes, and no key in the log."""
    everyone = [entry("alice", "requests_per_minute = 8"), entry("prometheus", METRICS), entry("root", ADMIN)]
    path = write(tmp_path / "keys.toml", *everyone)
    fleet = ["--runner", "synthetic", "--synthetic-cost", COST, "--min-replicas", "2", "--max-replicas", "2"]
    with running_server(*fleet, "--api-keys-file", str(path)) as server, server.client() as http:
        assert statuses(http, {}) == (401, 401, 401, 200)
        assert statuses(http, headers_of("prometheus")) == (403, 403, 200, 200)
        assert statuses(http, headers_of("root")) == (200, 200, 200, 200)
        asked = [http.post("/v1/completions", json=BODY, headers=headers_of("alice")) for _ in range(12)]
        assert asked[0].headers["x-ratelimit-remaining-requests"] == "6", "it counts for the other replica too"
        refused = [answer for answer in asked if answer.status_code == 429]
        assert refused
        assert all(int(answer.headers["retry-after-ms"]) > 0 for answer in refused)
        write(path, *everyone[1:])
        assert statuses(http, headers_of("alice")) == (401, 401, 401, 200)
        usage = http.get("/metrics", headers=headers_of("prometheus")).text
        log = server.output
    assert 'headcount_tenant_requests_total{outcome="limited",tenant="alice"}' in usage
    assert '"tenant": "alice"' in log
    for secret in (key_of("alice"), hash_of(key_of("alice"))):
        assert secret not in log + usage


@pytest.mark.parametrize(
    ("host", "has_keys", "num_said"), [("127.0.0.1", False, 0), ("192.0.2.1", True, 0), ("192.0.2.1", False, 1)]
)
def test_a_server_that_is_open_to_others_says_so(tmp_path: Path, host: str, has_keys: bool, num_said: int) -> None:
    """Not where only this machine reaches it, or where keys are asked for."""
    said: list[str] = []
    path = write(tmp_path / "keys.toml", entry("alice"))
    check_keys(Settings(host=host, api_keys_file=path if has_keys else None), said.append)
    assert len(said) == num_said


def test_a_wrong_file_of_keys_is_found_before_anything_starts(tmp_path: Path) -> None:
    """There is no server that is open instead."""
    path = write(tmp_path / "keys.toml", entry("alice", "weight = -1"))
    with pytest.raises(ConfigError, match=r"not valid at tenant\.0\.weight"):
        check_keys(Settings(api_keys_file=path), print)


def statuses(http: httpx.Client, headers: dict[str, str]) -> tuple[int, ...]:
    """Of a replica, of the front twice, and of what is public."""
    asked = http.post("/v1/completions", json=BODY, headers=headers)
    return (asked.status_code, *(http.get(path, headers=headers).status_code for path in ("/fleet", "/metrics", "/")))
