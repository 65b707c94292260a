"""Published trace formats are read as published; slices, speed and loops do what they say."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from loadtest.errors import ScenarioError
from loadtest.kinds import Trace
from loadtest.traces import TraceRequest, play_trace, read_trace

AZURE_2023 = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:17:05.9799600,110,27
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,100,5
2024-05-10 00:00:01.009930+00:00,200,6
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,0,417,Conversation log
"""
MOONCAKE = """{"timestamp": 1000, "input_length": 700, "output_length": 50, "hash_ids": [0, 1]}
{"timestamp": 3500, "input_length": 1100, "output_length": 9, "hash_ids": [0, 7, 8]}
"""
SERVEGEN = """0,10.0,1.0,Gamma,1.0,0.1
600,2.0,1.0,Weibull,1.0,0.5
"""


def _file(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _read(path: Path) -> list[TraceRequest]:
    return read_trace(path, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE_2023, [(0.0, 4808, 10, ()), (0.052, 3180, 8, ()), (2.0, 110, 27, ())]),
        (AZURE_2024, [(0.0, 100, 5, ()), (1.0, 200, 6, ())]),
        (BURSTGPT, [(0.0, 472, 18, ()), (40.0, 1087, 230, ())]),
        (MOONCAKE, [(0.0, 700, 50, (0, 1)), (2.5, 1100, 9, (0, 7, 8))]),
    ],
)
def test_formats(tmp_path: Path, text: str, expected: list[tuple[float, int, int, tuple[int, ...]]]) -> None:
    """Times count from the first request; lengths and prefix blocks are the file's."""
    found = _read(_file(tmp_path, text))

    assert [round(r.at_s, 6) for r in found] == [at_s for at_s, *_ in expected]
    assert [(r.prompt_tokens, r.output_tokens, r.prefix_blocks) for r in found] == [
        tuple(rest) for _, *rest in expected
    ]


def test_servegen_draws_each_windows_rate(tmp_path: Path) -> None:
    """A window's arrivals come at its rate; the trace has no lengths."""
    found = _read(_file(tmp_path, SERVEGEN))
    first = sum(request.at_s < 600 for request in found)

    assert first == pytest.approx(6000, rel=0.05)
    assert len(found) - first == pytest.approx(1200, rel=0.1)
    assert {request.prompt_tokens for request in found} == {None}


def test_a_slice_of_a_huge_servegen_trace_is_drawn_alone(tmp_path: Path) -> None:
    """Only the wanted windows cost time; the whole is refused with a hint."""
    path = _file(tmp_path, "0,1e6,1.0,Gamma,1.0,0.1\n600,2.0,1.0,Gamma,1.0,0.5\n")

    assert len(play_trace(Trace(kind="trace", path=str(path), start_s=600), np.random.default_rng(0))) < 2000
    with pytest.raises(ScenarioError, match="take a slice"):
        _read(path)


def test_gzip_is_read(tmp_path: Path) -> None:
    """A .gz file is the same trace."""
    path = tmp_path / "trace.gz"
    path.write_bytes(gzip.compress(MOONCAKE.encode()))

    assert len(_read(path)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello\n", "none of the known formats"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", "malformed"),
        ('{"timestamp": 0}\n', "malformed"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("0,1.0,1.0,Cauchy,1.0,0.1\n", "unknown gap distribution"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    """Whatever is wrong with a file is a ScenarioError that says what."""
    with pytest.raises(ScenarioError, match=says):
        _read(_file(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """No file, one sentence."""
    with pytest.raises(ScenarioError, match="cannot be read"):
        _read(tmp_path / "nothing")


def test_slice_speed_loops_and_scale(tmp_path: Path) -> None:
    """A slice of 2 s from second 1, twice as fast, twice over, at a tenth of the tokens."""
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2023-11-16 18:00:0{second},{100 + second},20\n" for second in range(5)
    )
    spec = Trace(
        kind="trace",
        path=str(_file(tmp_path, text)),
        start_s=1,
        length_s=2,
        speed=2,
        loops=2,
        token_scale=0.1,
    )

    found = play_trace(spec, np.random.default_rng(0))

    assert [(r.at_s, r.prompt_tokens, r.output_tokens) for r in found] == [
        (0.0, 10, 2),
        (0.5, 10, 2),
        (1.0, 10, 2),
        (1.5, 10, 2),
    ]


def test_an_empty_slice_is_refused(tmp_path: Path) -> None:
    """A slice past the end says so."""
    spec = Trace(kind="trace", path=str(_file(tmp_path, AZURE_2023)), start_s=100)

    with pytest.raises(ScenarioError, match="no requests between 100 s"):
        play_trace(spec, np.random.default_rng(0))
