"""Metrics of one process and of several, of living and of dead ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families as parse_text

from service.metrics.catalog import CATALOG, Kind
from service.metrics.exposition import render
from service.metrics.recorder import Recorder
from tests.metrics.worlds import HTTP, INFO, STEP, TENANT

ROOT = Path(__file__).parents[2]
Writer = subprocess.Popen[str]
StartWriter = Callable[[int], Writer]


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[StartWriter]:
    """Start a process that records the given number of steps into the shared directory; it has when this returns."""
    with ExitStack() as stack:

        def start(num_steps: int) -> Writer:
            command = [sys.executable, "-m", "tests.metrics.writer", str(tmp_path), str(num_steps)]
            writer = stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(writer.kill)
            assert writer.stdout is not None
            assert writer.stdout.readline() == "recorded\n"
            return writer

        yield start


def _values(source: Path | CollectorRegistry) -> dict[str, float]:
    """All series without labels other than the engine's, by name."""
    body, _ = render(source)
    return {
        sample.name: sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
        if not sample.labels.keys() - {"model_name", "engine"}
    }


def _of_interest(values: dict[str, float]) -> dict[str, float]:
    names = ["num_requests_running", "kv_cache_usage_perc"]
    names += ["generation_tokens_total", "e2e_request_latency_seconds_count"]
    return {name: values[f"vllm:{name}"] for name in names if f"vllm:{name}" in values}


def _expected(num_steps: int, num_alive: int) -> dict[str, float]:
    gauges = {"num_requests_running": 3.0 * num_alive, "kv_cache_usage_perc": 0.25} if num_alive else {}
    return gauges | {"generation_tokens_total": 3.0 * num_steps, "e2e_request_latency_seconds_count": num_steps}


def test_replicas_add_up_and_the_dead_keep_what_they_counted(tmp_path: Path, start_writer: StartWriter) -> None:
    """Two processes sum; one killed outright takes its gauges along and leaves its counts; so does the last."""
    first, second = start_writer(2), start_writer(5)
    assert _of_interest(_values(tmp_path)) == _expected(num_steps=7, num_alive=2)

    first.kill()
    first.wait()
    assert _of_interest(_values(tmp_path)) == _expected(num_steps=7, num_alive=1)

    start_writer(1)
    second.kill()
    second.wait()
    assert _of_interest(_values(tmp_path)) == _expected(num_steps=8, num_alive=1)


def test_the_directory_does_not_grow_with_the_dead(tmp_path: Path, start_writer: StartWriter) -> None:
    """However many processes came and went, one file per type keeps their counts, and asking again changes nothing."""
    for _ in range(3):
        writer = start_writer(1)
        writer.kill()
        writer.wait()
        values = _values(tmp_path)

    assert _values(tmp_path) == values
    assert _of_interest(values) == _expected(num_steps=3, num_alive=0)
    assert sorted(file.name for file in tmp_path.glob("*.db")) == [
        *(f"{kind}_retired.db" for kind in ("counter", "histogram", "summary")),
    ]


def test_a_zombie_is_dead(tmp_path: Path, start_writer: StartWriter) -> None:
    """A killed process that its parent has not waited for still has an id, and no say."""
    writer = start_writer(1)
    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)

    assert _of_interest(_values(tmp_path)) == _expected(num_steps=1, num_alive=0)


def test_a_process_id_used_again_does_not_revive_a_dead_replica(tmp_path: Path, start_writer: StartWriter) -> None:
    """Files of a dead replica whose id now belongs to someone else (here: to this test) are those of a dead one."""
    writer = start_writer(1)
    writer.kill()
    writer.wait()
    for file in tmp_path.glob("*.db"):
        kind = file.stem.rpartition("_")[0]
        file.rename(tmp_path / f"{kind}_{os.getpid()}.1.db")

    assert _of_interest(_values(tmp_path)) == _expected(num_steps=1, num_alive=0)


def test_one_process_renders_its_registry(tmp_path: Path, start_writer: StartWriter) -> None:
    """Without a directory the same recorder and renderer give the same series from memory."""
    registry = CollectorRegistry()
    Recorder(INFO, registry).on_step(STEP)
    start_writer(1)

    in_memory = {name: value for name, value in _values(registry).items() if not name.endswith("_created")}

    assert _of_interest(in_memory) == _expected(num_steps=1, num_alive=1)
    assert in_memory.keys() == _values(tmp_path).keys()


def test_names_come_out_as_declared(tmp_path: Path, start_writer: StartWriter) -> None:
    """From memory or from files, what is rendered parses, with every name, type, label and bucket of the catalog."""
    registry = CollectorRegistry()
    recorder = Recorder(INFO, registry)
    recorder.on_request(HTTP)
    recorder.on_tenant(TENANT)
    start_writer(1)

    for source in (registry, tmp_path):
        body, content_type = render(source)
        families = {family.name: family for family in parse_text(body.decode())}

        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        for metric in (each for each in CATALOG if not each.of_fleet):
            family = families[metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name]
            assert family.type == metric.kind
            for sample in family.samples:
                assert sample.labels.keys() - {"le"} == set(metric.labels)
