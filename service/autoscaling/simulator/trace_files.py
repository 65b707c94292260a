"""Readers of public traces: the format is told from the header or the first line.

Azure LLM inference 2023 and 2024 (CSV: TIMESTAMP, ContextTokens, GeneratedTokens), BurstGPT (CSV: Timestamp, …, Request
tokens, Response tokens), Mooncake (JSON lines: timestamp in ms, input_length, output_length, hash_ids), ServeGen (CSV
without header: start of a window, requests/s, coefficient of variation, distribution, its two parameters). Any of them
may be gzipped. So may be our own decision log (JSON lines with at and terms), for what would have happened instead.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from random import Random

from service.autoscaling.ledger import LONGEST_PAUSE_S
from service.autoscaling.simulator.workload import SimulatedRequest, Workload
from service.errors import ConfigError

_Reader = Callable[[list[str]], Iterator[SimulatedRequest]]

_SERVEGEN_COLUMNS = 6
_SERVEGEN_TOKENS = (1200.0, 300.0)  # mean prompt and output tokens of windows, which say nothing of lengths


def read_trace(path: Path) -> Workload:
    """The requests of a trace file. Raises ConfigError: no such file, unknown format, malformed line."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            lines = [line for line in file.read().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The trace {path} cannot be read: {error}.") from None
    if not lines:
        raise ConfigError(f"The trace {path} is empty.")
    try:
        return Workload.of(path.name.split(".")[0], _reader(lines, path)(lines))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"The trace {path} has a malformed line: {error}.") from None


def _decisions(lines: list[str]) -> Iterator[SimulatedRequest]:
    """The demand that a decision log saw: the requests since the decision before, evenly spread, of the mean lengths of
    then. A decision without terms was not the law's and saw none."""
    owed, before = 0.0, None
    for line in lines:
        row = json.loads(line)
        terms = row["terms"]
        if not terms:
            continue
        elapsed_s = 1.0 if before is None else min(LONGEST_PAUSE_S, max(0.0, row["at"] - before))
        before = row["at"]
        owed += terms["requests_per_s"] * elapsed_s
        number = int(owed)
        owed -= number
        for i in range(number):
            yield SimulatedRequest(
                row["at"] - elapsed_s * (1.0 - i / number),
                round(terms["prompt_tokens_per_request"]),
                round(terms["output_tokens_per_request"]),
            )


def _reader(lines: list[str], path: Path) -> _Reader:
    """The reader of the format that the first line shows."""
    first = lines[0]
    if first.startswith("{"):
        return _decisions if '"terms"' in first else _mooncake
    columns = [column.strip() for column in first.split(",")]
    if "ContextTokens" in columns:
        return _azure
    if "Response tokens" in columns:
        return _burstgpt
    if len(columns) == _SERVEGEN_COLUMNS and columns[3].isalpha():
        return _servegen
    raise ConfigError(
        f"The trace {path} is of no known format: it must be Azure, BurstGPT or ServeGen CSV, or Mooncake JSON lines."
    )


def _azure(lines: list[str]) -> Iterator[SimulatedRequest]:
    for row in csv.DictReader(lines):
        at = datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).replace(tzinfo=None)
        yield SimulatedRequest(
            (at - datetime(2020, 1, 1)).total_seconds(),  # noqa: DTZ001 - only differences count
            int(row["ContextTokens"]),
            int(row["GeneratedTokens"]),
        )


def _burstgpt(lines: list[str]) -> Iterator[SimulatedRequest]:
    """A response of 0 tokens is a failed call, which the trace's authors tell us to leave out."""
    for row in csv.DictReader(lines):
        if int(row["Response tokens"]) > 0:
            yield SimulatedRequest(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


def _mooncake(lines: list[str]) -> Iterator[SimulatedRequest]:
    for line in lines:
        row = json.loads(line)
        yield SimulatedRequest(
            row["timestamp"] / 1000.0, row["input_length"], row["output_length"], tuple(row["hash_ids"])
        )


def _servegen(lines: list[str]) -> Iterator[SimulatedRequest]:
    """Draw arrivals from each window's own gap distribution; lengths are log-normal, as the windows do not tell."""
    rng = Random(0)
    windows = [line.split(",") for line in lines]
    starts = [float(window[0]) for window in windows]
    for window, start, end in zip(windows, starts, [*starts[1:], starts[-1] + (starts[-1] - starts[-2])], strict=True):
        rate, shape, scale = float(window[1]), float(window[4]), float(window[5])
        if rate <= 0.0:
            continue
        draw = rng.gammavariate if window[3] == "Gamma" else lambda a, b: rng.weibullvariate(b, a)
        at = start + draw(shape, scale)
        while at < end:
            num_prompt, num_output = (round(mean * rng.lognormvariate(-0.5, 1.0)) for mean in _SERVEGEN_TOKENS)
            yield SimulatedRequest(at, num_prompt, num_output)
            at += draw(shape, scale)
