"""Traces: every public format, our own log, and the made ones."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from service.autoscaling.command import simulate
from service.autoscaling.record import DecisionLog, DecisionRecord
from service.autoscaling.simulator.made_traces import SHAPES, made_trace
from service.autoscaling.simulator.trace_files import read_trace
from service.autoscaling.simulator.workload import SimulatedRequest, Workload
from service.errors import ConfigError

FILES: dict[str, tuple[str, list[tuple[float, int, int, tuple[int, ...]]]]] = {
    "azure2023.csv": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.9951690,374,44\n",
        [(0.0, 374, 44, ()), (4.0, 396, 109, ())],
    ),
    "azure2024.csv": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.009930+00:00,1,0\n",
        [(0.0, 2162, 5, ()), (1.0, 1, 1, ())],
    ),
    "burstgpt.csv": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,100,0,100,API log\n45,GPT-4,1087,230,1317,Conversation log\n",
        [(0.0, 472, 18, ()), (40.0, 1087, 230, ())],
    ),
    "mooncake.jsonl": (
        '{"timestamp": 0, "input_length": 700, "output_length": 500, "hash_ids": [0, 1]}\n'
        '{"timestamp": 2500, "input_length": 600, "output_length": 4, "hash_ids": [0, 2]}\n',
        [(0.0, 700, 500, (0, 1)), (2.5, 600, 4, (0, 2))],
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_zipped", [False, True])
def test_every_public_format_is_read(tmp_path: Path, name: str, is_zipped: bool) -> None:
    """In order of arrival, from 0, whatever the order in the file, packed or not."""
    text, expected = FILES[name]
    path = tmp_path / (name + ".gz" * is_zipped)
    path.write_bytes(gzip.compress(text.encode()) if is_zipped else text.encode())
    requests = read_trace(path).requests
    assert [r[1:] for r in requests] == [e[1:] for e in expected]
    assert [r.arrival_at for r in requests] == pytest.approx([e[0] for e in expected])


def test_servegen_windows_become_arrivals_at_their_rate(tmp_path: Path) -> None:
    """Two windows of 5 and 10 requests/s, with Gamma gaps: so many requests come, within a tenth."""
    path = tmp_path / "servegen.csv"
    path.write_text("0,5.0,1.0,Gamma,1.0,0.2\n600,10.0,1.0,Gamma,1.0,0.1\n")
    requests = read_trace(path).requests
    assert sum(r.arrival_at < 600 for r in requests) == pytest.approx(3000, rel=0.1)
    assert sum(r.arrival_at >= 600 for r in requests) == pytest.approx(6000, rel=0.1)


def test_our_own_decisions_can_be_played_again(tmp_path: Path) -> None:
    """The demand of a decision log comes back: its rate, its lengths."""
    terms = {"requests_per_s": 2.5, "prompt_tokens_per_request": 100.2, "output_tokens_per_request": 20.0}
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(json.dumps({"at": 7000.0 + i, "terms": terms}) + "\n" for i in range(10)))
    requests = read_trace(path).requests
    assert len(requests) == 25
    assert {r[1:3] for r in requests} == {(100, 20)}
    assert requests[-1].arrival_at < 10.0


def test_the_log_of_a_service_is_played_with_other_bounds(tmp_path: Path) -> None:
    """What `DecisionLog` wrote comes back: decisions of every second and a half, and those that Serve made itself."""
    log = DecisionLog(tmp_path)
    terms = {"requests_per_s": 4.0, "prompt_tokens_per_request": 100.0, "output_tokens_per_request": 20.0}
    for number in range(101):
        is_ours = number > 0
        record = DecisionRecord(
            number=number,
            at=7000.0 + 1.5 * number,
            current=1,
            desired=1,
            reason="1 stay.",
            terms={**terms, "held_price": math.nan} if is_ours else {},
            source="brain" if is_ours else "serve",
        )
        log.append(record, None)
    log.close()
    assert len(read_trace(tmp_path / "decisions.jsonl").requests) == pytest.approx(600, abs=5)
    arguments = ["--trace", str(tmp_path / "decisions.jsonl"), "--policy", "headcount", "--json"]
    for low, high in ((2, 3), (5, 6)):
        bounds = ["--min-replicas", str(low), "--max-replicas", str(high)]
        result = CliRunner().invoke(simulate, arguments + bounds)
        summary = json.loads(result.stdout)["policies"]["headcount"]
        assert low * 148 <= summary["replica_seconds"] <= high * 150


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "no known format"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "malformed"),
        ('{"timestamp": 0}\n', "malformed"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path: Path, text: str, why: str) -> None:
    """Empty, foreign and malformed files are told apart."""
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read_trace(path)


def test_a_missing_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """No traceback for a wrong path."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_a_trace_times_three_has_three_times_the_requests_in_the_same_time() -> None:
    """Copies are spread over the gap that follows, so that bursts keep their shape."""
    workload = Workload.of("w", [SimulatedRequest(0.0, 5, 5), SimulatedRequest(3.0, 6, 6)])
    assert [r.arrival_at for r in workload.times(3).requests] == [0.0, 1.0, 2.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("name", SHAPES)
def test_made_traces_are_the_same_every_time(name: str) -> None:
    """Seeded, in order, and about as long as they say."""
    workload = made_trace(name)
    assert workload.requests == made_trace(name).requests
    assert SHAPES[name].duration_s - 30 < workload.duration_s <= SHAPES[name].duration_s


def test_there_is_no_other_made_trace() -> None:
    """An unknown name lists the known ones."""
    with pytest.raises(ConfigError, match="on-off"):
        made_trace("onoff")
