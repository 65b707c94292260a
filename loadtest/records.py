"""What happened to each request, and its way through a CSV file: records leave memory as soon as they are complete.

All instants are seconds after the start of the run. Unknown is None, never 0.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path


class Outcome(StrEnum):
    """How a request ended. Only OK is success; DISCONNECTED is what the scenario asked for."""

    OK = "ok"
    DISCONNECTED = "disconnected"  # the client left, as planned
    DEADLINE = "deadline"  # the client's deadline, or the longest time a request may take, went by
    CONNECT = "connect"  # no connection
    HTTP = "http"  # a status other than 200: see status and code
    CUT = "cut"  # the stream ended before its end
    MALFORMED = "malformed"  # the bytes are not the protocol
    ERROR_EVENT = "error_event"  # the server reported an error in mid-stream
    SKIPPED = "skipped"  # not sent: the conversation's previous turn failed
    DROPPED = "dropped"  # not sent: the tester had too many requests in flight
    UNFINISHED = "unfinished"  # in flight when the run was stopped

    @property
    def is_failure(self) -> bool:
        """Whether it counts against the server (or, DROPPED, against the run)."""
        return self not in {Outcome.OK, Outcome.DISCONNECTED, Outcome.UNFINISHED, Outcome.SKIPPED}

    @property
    def was_sent(self) -> bool:
        return self not in {Outcome.SKIPPED, Outcome.DROPPED}


@dataclass(slots=True, kw_only=True)
class Record:
    """One request.

    `intended_s`: when it was due. `sent_s`: when its first attempt went out. `first_s`, `last_s`: arrival of the
    first and the last event with output. `end_s`: arrival of the last byte, or the moment it failed.
    `prompt_tokens`, `output_tokens`, `cached_tokens`: the server's `usage`. `num_events`: events with output (one
    may hold several tokens). `retry_after_s`: what the last refusal advised. `retry_wait_s`: what was waited before
    the last attempt.
    """

    index: int
    tenant: str
    conversation: int
    turn: int
    intended_s: float
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float | None = None
    end_s: float | None = None
    outcome: Outcome = Outcome.UNFINISHED
    status: int | None = None
    code: str | None = None
    message: str | None = None
    finish_reason: str | None = None
    planned_prompt_tokens: int | None = None
    planned_output_tokens: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    num_events: int = 0
    attempts: int = 0
    retry_after_s: float | None = None
    retry_slack_s: float | None = None

    @property
    def lateness_s(self) -> float | None:
        """The tester's own delay: sent − intended."""
        return None if self.sent_s is None else self.sent_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        """First output − intended send."""
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def ttft_from_send_s(self) -> float | None:
        return None if self.first_s is None or self.sent_s is None else self.first_s - self.sent_s

    @property
    def e2e_s(self) -> float | None:
        """Last byte − intended send."""
        return None if self.end_s is None else self.end_s - self.intended_s

    @property
    def e2e_from_send_s(self) -> float | None:
        return None if self.end_s is None or self.sent_s is None else self.end_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """(E2E − TTFT) / (output tokens − 1); None for a single token. Events stand for tokens when usage is
        absent."""
        tokens = self.num_events if self.output_tokens is None else self.output_tokens
        if self.first_s is None or self.end_s is None or tokens <= 1:
            return None
        return (self.end_s - self.first_s) / (tokens - 1)


DERIVED = ("lateness_s", "ttft_s", "ttft_from_send_s", "tpot_s", "e2e_s", "e2e_from_send_s")
_NUMBERS = {"int": int, "float": float}


class RecordWriter:
    """Appends records to a CSV file, one line each, flushed now and then by the file itself."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="")
        self._csv = csv.writer(self._file)
        self._names = [field.name for field in fields(Record)]
        self._csv.writerow(self._names)

    def write(self, record: Record) -> None:
        self._csv.writerow([getattr(record, name) for name in self._names])

    def close(self) -> None:
        self._file.close()


def read_records(paths: Iterable[Path]) -> list[Record]:
    """Records of all files, in order of their index."""
    records = [record for path in paths for record in _read(path)]
    records.sort(key=lambda record: record.index)
    return records


def _read(path: Path) -> Iterator[Record]:
    types = {field.name: str(field.type).removesuffix(" | None") for field in fields(Record)}
    optional = {field.name for field in fields(Record) if str(field.type).endswith("| None")}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            values = {
                name: None if text == "" and name in optional else _NUMBERS.get(types[name], str)(text)
                for name, text in row.items()
            }
            yield Record(**{**values, "outcome": Outcome(row["outcome"])})  # type: ignore[arg-type]


def write_csv(records: Iterable[Record], path: Path) -> None:
    """The table for people: every field of the records, and the latencies that follow from them."""
    names = [*(field.name for field in fields(Record)), *DERIVED]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(record, name) for name in names] for record in records)
