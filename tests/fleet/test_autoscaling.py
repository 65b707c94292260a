"""A fleet that follows its load, for real: Ray Serve, HTTP, synthetic replicas, from none to several and back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from service.bench.serving import command_of, descendants
from service.cli import main
from tests.fleet.server_process import (
    ServerProcess,
    eventually,
    running_server,
)

pytestmark = pytest.mark.cluster

# Sixteen streams are more than one replica carries within its targets, and a miss costs little: all happens in minutes.
SETTINGS = (
    *("--runner", "synthetic", "--synthetic-cost", '{"base_s": 0.05, "per_sequence_s": 0.02}'),
    *("--min-replicas", "0", "--max-replicas", "3", "--slo-tpot-s", "0.15", "--price-per-miss", "0.001"),
)
NUM_STREAMS = 16
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running_server(*SETTINGS) as running:
        yield running


def fleet(server: ServerProcess) -> dict[str, Any]:
    with server.client() as client:
        answer: dict[str, Any] = client.get("/fleet").raise_for_status().json()
    return answer


def num_running(server: ServerProcess) -> int:
    return int(fleet(server)["replica_states"].get("RUNNING", 0))


def stream(server: ServerProcess) -> str:
    """One whole stream: its last line."""
    body = {"prompt": "abc", "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    with server.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == httpx.codes.OK
        events = [line for line in response.iter_lines() if line]
    assert f'"completion_tokens":{NUM_TOKENS}' in events[-2], events[-2:]
    return events[-1]


def test_a_fleet_of_none_answers_for_itself_and_wakes_for_a_request(server: ServerProcess) -> None:
    """Health, metrics, documentation and the view of the fleet wake nobody; a request does, and is answered."""
    with server.client() as client:
        for path in ("/health/ready", "/health/live", "/metrics", "/docs", "/openapi.json", "/version", "/fleet"):
            assert client.get(path).status_code == httpx.codes.OK, path
        assert num_running(server) == 0
        assert [pid for pid in descendants(server.process.pid) if ":headcount:Replica" in command_of(pid)] == []
        answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    assert answer.status_code == httpx.codes.OK
    assert answer.json()["usage"]["completion_tokens"] == 3
    eventually(lambda: num_running(server) == 1)


def test_it_grows_with_the_load_and_shrinks_without_losing_a_stream(server: ServerProcess) -> None:
    """Streams come and go without a pause while replicas do: all of them end as they should, and then none is left."""
    is_over, most = threading.Event(), 0

    def load() -> list[str]:
        endings = []
        while not is_over.is_set():
            endings.append(stream(server))
        return endings

    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        crowd = [pool.submit(load) for _ in range(NUM_STREAMS)]
        eventually(lambda: num_running(server) >= 2)
        most = num_running(server)
        is_over.set()
        assert {ending for each in crowd for ending in each.result()} == {"data: [DONE]"}

        is_over.clear()
        lonely = pool.submit(load)  # someone is always there while the others' replicas go
        eventually(lambda: num_running(server) < most)
        is_over.set()
        assert set(lonely.result()) == {"data: [DONE]"}
    eventually(lambda: num_running(server) == 0)


def test_every_change_is_on_record_and_in_words(server: ServerProcess) -> None:
    """From none to one by Serve, then by the law, up and down, as numbers and as sentences; the metrics agree."""
    eventually(lambda: fleet(server)["decision"]["current"] == 0)
    result = CliRunner().invoke(main, ["explain", "--url", server.url, "--json", "--last", "3600"])
    assert result.exit_code == 0, result.output
    changes = [json.loads(line) for line in result.output.splitlines()]
    assert (changes[0]["current"], changes[0]["desired"], changes[0]["source"]) == (0, 1, "serve")
    assert max(change["desired"] for change in changes) >= 2
    assert all(f"{change['current']} → {change['desired']}: " in change["reason"] for change in changes[:-1])
    assert fleet(server)["start_times_s"]
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    figures = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("headcount_")}
    assert figures["headcount_desired_replicas"] == 0
    assert figures['headcount_replicas{state="ready"}'] == 0
    assert figures['headcount_scale_events_total{direction="down"}'] >= 1
    assert figures["headcount_replica_seconds_total"] > 0


def test_serves_own_proxy_holds_the_first_request_too() -> None:
    """The other data plane: a request at zero replicas is answered."""
    with running_server(*SETTINGS, "--data-plane", "serve") as server, server.client() as client:
        assert client.get("/metrics").status_code == httpx.codes.OK
        assert num_running(server) == 0
        answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 3})
    assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (httpx.codes.OK, 3)
