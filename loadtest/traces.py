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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from loadtest.errors import ScenarioError
from loadtest.spec import Trace

MOONCAKE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """`at_s` counts from the trace's first request; lengths are None where the trace has none."""

    at_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prefix_blocks: tuple[int, ...] = ()


def read_trace(path: Path, rng: np.random.Generator) -> list[TraceRequest]:
    """All requests of the file, sorted by time from 0; equal times keep the file's order. Raises ScenarioError."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        requests = list(_reader(text)(text, rng))
    except OSError as error:
        raise ScenarioError(f"The trace {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, IndexError, EOFError) as error:
        raise ScenarioError(f"The trace {path} is malformed: {error!r}.") from error
    if not requests:
        raise ScenarioError(f"The trace {path} has no requests.")
    requests.sort(key=lambda request: request.at_s)
    return [replace(request, at_s=request.at_s - requests[0].at_s) for request in requests]


def shape_trace(requests: list[TraceRequest], spec: Trace) -> list[TraceRequest]:
    """The slice, speed, loops and token scale that `spec` asks for. Raises ScenarioError when nothing is left."""
    end = math.inf if spec.length_s is None else spec.start_s + spec.length_s
    taken = [request for request in requests if spec.start_s <= request.at_s < end]
    if not taken:
        raise ScenarioError(f"The trace has no requests between {spec.start_s:g} s and {end:g} s.")
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


def _reader(text: str) -> Callable[[str, np.random.Generator], Iterable[TraceRequest]]:
    first = text.partition("\n")[0].strip()
    if first.startswith("{"):
        return _mooncake
    if first.startswith("TIMESTAMP,"):
        return _azure
    if "Request tokens" in first:
        return _burstgpt
    if first.count(",") == 5 and first[0].isdigit():  # noqa: PLR2004 - six columns
        return _servegen
    raise ScenarioError("The trace is in none of the known formats: Azure, BurstGPT, Mooncake, ServeGen.")


def _azure(text: str, rng: np.random.Generator) -> Iterator[TraceRequest]:
    del rng
    first: datetime | None = None
    for row in csv.DictReader(io.StringIO(text)):
        at = datetime.fromisoformat(row["TIMESTAMP"])
        first = first or at
        yield TraceRequest((at - first).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burstgpt(text: str, rng: np.random.Generator) -> Iterator[TraceRequest]:
    del rng
    for row in csv.DictReader(io.StringIO(text)):
        # A response of 0 tokens is a request that failed: there is nothing to replay.
        if int(row["Response tokens"]) > 0:
            yield TraceRequest(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


def _mooncake(text: str, rng: np.random.Generator) -> Iterator[TraceRequest]:
    del rng
    for line in text.splitlines():
        row = json.loads(line)
        yield TraceRequest(
            row["timestamp"] / 1000, int(row["input_length"]), int(row["output_length"]), tuple(row["hash_ids"])
        )


def _servegen(text: str, rng: np.random.Generator) -> Iterator[TraceRequest]:
    """Draws the arrivals that each window's parameters describe; a window ends where the next begins."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    starts = [float(row[0]) for row in rows]
    width = starts[1] - starts[0] if len(starts) > 1 else 600.0
    for start, end, row in zip(starts, [*starts[1:], starts[-1] + width], rows, strict=True):
        rate, family, shape = float(row[1]), row[3], float(row[4])
        at = start
        while rate > 0 and (at := at + _gap(family, shape, rng) / rate) < end:
            yield TraceRequest(at)


def _gap(family: str, shape: float, rng: np.random.Generator) -> float:
    """A gap with mean 1."""
    if family == "Gamma":
        return float(rng.gamma(shape, 1 / shape))
    if family == "Weibull":
        return float(rng.weibull(shape) / math.gamma(1 + 1 / shape))
    if family in {"Exponential", "Expon"}:
        return float(rng.exponential())
    raise ValueError(f"unknown gap distribution {family!r}")
