"""Reads published request traces: Azure (2023, 2024), BurstGPT, Mooncake, ServeGen; the first line tells which.

Formats (all may be gzipped):
    Azure      CSV `TIMESTAMP,ContextTokens,GeneratedTokens`, timestamps as dates
    BurstGPT   CSV with `Timestamp` (seconds), `Request tokens`, `Response tokens`, other columns ignored
    Mooncake   JSON lines with `timestamp` (milliseconds), `input_length`, `output_length`, `hash_ids`
               (512-token prefix blocks)
    ServeGen   CSV without header: window start (s), rate (1/s), CV, gap distribution, its shape, its scale; no lengths
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from loadtest.errors import ScenarioError
from loadtest.kinds import Trace

MOONCAKE_BLOCK_TOKENS = 512
SERVEGEN_WINDOW_S = 600.0  # of a trace with a single window
MAX_DRAWN = 3_000_000


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """`at_s` counts from the trace's first request; lengths are None where the trace has none."""

    at_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prefix_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """Seconds of a trace: [start_s, end_s)."""

    start_s: float = 0.0
    end_s: float = math.inf


def read_trace(path: Path, rng: np.random.Generator, wanted: Slice = Slice()) -> list[TraceRequest]:
    """The requests of the file within `wanted`, sorted by time; equal times keep the file's order. Raises
    ScenarioError.

    `wanted` counts from the trace's first request (ServeGen: from its first window) and stays the origin of `at_s`.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        requests = _parse(text, rng, wanted)
    except OSError as error:
        raise ScenarioError(f"The trace {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, IndexError, EOFError) as error:
        raise ScenarioError(f"The trace {path} is malformed: {error!r}.") from error
    taken = [request for request in requests if wanted.start_s <= request.at_s < wanted.end_s]
    if not taken:
        raise ScenarioError(f"The trace {path} has no requests between {wanted.start_s:g} s and {wanted.end_s:g} s.")
    return taken


def play_trace(spec: Trace, rng: np.random.Generator) -> list[TraceRequest]:
    """The slice, speed, loops and token scale that `spec` asks for; times from 0. Raises ScenarioError."""
    end_s = math.inf if spec.length_s is None else spec.start_s + spec.length_s
    taken = read_trace(Path(spec.path), rng, Slice(spec.start_s, end_s))
    last = taken[-1].at_s - spec.start_s
    # Without a given length the next loop starts one mean gap after the last request.
    period = spec.length_s if spec.length_s is not None else last * (1 + 1 / max(len(taken) - 1, 1)) or 1.0
    return [
        TraceRequest(
            at_s=(request.at_s - spec.start_s + loop * period) / spec.speed,
            prompt_tokens=_scaled(request.prompt_tokens, spec.token_scale),
            output_tokens=_scaled(request.output_tokens, spec.token_scale),
            prefix_blocks=request.prefix_blocks,
        )
        for loop in range(spec.loops)
        for request in taken
    ]


def _scaled(tokens: int | None, scale: float) -> int | None:
    return None if tokens is None else max(1, round(tokens * scale))


def _from_zero(requests: Iterable[TraceRequest]) -> list[TraceRequest]:
    ordered = sorted(requests, key=lambda request: request.at_s)
    return [replace(request, at_s=request.at_s - ordered[0].at_s) for request in ordered]


def _parse(text: str, rng: np.random.Generator, wanted: Slice) -> list[TraceRequest]:
    first = text.partition("\n")[0].strip()
    if first.startswith("{"):
        return _from_zero(_mooncake(text))
    if first.startswith("TIMESTAMP,"):
        return _from_zero(_azure(text))
    if "Request tokens" in first:
        return _from_zero(_burstgpt(text))
    if first.count(",") == 5 and first[0].isdigit():  # noqa: PLR2004 - six columns
        return _servegen(text, rng, wanted)
    raise ScenarioError("The trace is in none of the known formats: Azure, BurstGPT, Mooncake, ServeGen.")


def _azure(text: str) -> Iterator[TraceRequest]:
    first: datetime | None = None
    for row in csv.DictReader(io.StringIO(text)):
        at = datetime.fromisoformat(row["TIMESTAMP"])
        first = first or at
        yield TraceRequest((at - first).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burstgpt(text: str) -> Iterator[TraceRequest]:
    for row in csv.DictReader(io.StringIO(text)):
        # A response of 0 tokens is a request that failed: there is nothing to replay.
        if int(row["Response tokens"]) > 0:
            yield TraceRequest(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


def _mooncake(text: str) -> Iterator[TraceRequest]:
    for line in text.splitlines():
        row = json.loads(line)
        yield TraceRequest(
            row["timestamp"] / 1000, int(row["input_length"]), int(row["output_length"]), tuple(row["hash_ids"])
        )


@dataclass(frozen=True, slots=True)
class _Window:
    """A stretch of a ServeGen trace: its gaps come from one distribution."""

    start_s: float
    end_s: float
    rate_rps: float
    family: str
    shape: float


def _servegen(text: str, rng: np.random.Generator, wanted: Slice) -> list[TraceRequest]:
    """Draws the arrivals that the wanted windows describe; a window ends where the next begins."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    starts = [float(row[0]) - float(rows[0][0]) for row in rows]
    width = starts[1] - starts[0] if len(starts) > 1 else SERVEGEN_WINDOW_S
    windows = [
        _Window(start, end, float(row[1]), row[3], float(row[4]))
        for start, end, row in zip(starts, [*starts[1:], starts[-1] + width], rows, strict=True)
        if start < wanted.end_s and end > wanted.start_s
    ]
    expected = sum(window.rate_rps * (window.end_s - window.start_s) for window in windows)
    if expected > MAX_DRAWN:
        raise ScenarioError(f"The trace describes {expected:,.0f} requests: take a slice of it (start_s, length_s).")
    return [TraceRequest(at_s) for window in windows for at_s in _arrivals(window, rng)]


def _arrivals(window: _Window, rng: np.random.Generator) -> Iterator[float]:
    at_s = window.start_s
    while window.rate_rps > 0 and (at_s := at_s + _gap(window, rng) / window.rate_rps) < window.end_s:
        yield at_s


def _gap(window: _Window, rng: np.random.Generator) -> float:
    """A gap with mean 1."""
    if window.family == "Gamma":
        return float(rng.gamma(window.shape, 1 / window.shape))
    if window.family == "Weibull":
        return float(rng.weibull(window.shape) / math.gamma(1 + 1 / window.shape))
    if window.family in {"Exponential", "Expon"}:
        return float(rng.exponential())
    raise ValueError(f"unknown gap distribution {window.family!r}")
