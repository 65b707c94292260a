"""Every decision on record: the latest in memory, all of them in JSON lines on disk until those grow too large.

A line holds what `decide` was given and what it said, so that `headcount simulate` and a reader with no service at hand
can go over it again.
"""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

from service.autoscaling.signals import Snapshot

Source = Literal["brain", "serve"]  # Serve itself starts the first replica for a request that waits at zero

NUM_IN_MEMORY = 3600  # an hour of them
BYTES_PER_FILE = 64 << 20
NUM_OLDER_FILES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRecord:
    """`at` is Unix time; `current` counts ready and starting replicas. `snapshot` is what was seen."""

    number: int
    at: float
    current: int
    desired: int
    reason: str
    terms: dict[str, float]
    source: Source = "brain"

    def to_dict(self) -> dict[str, Any]:
        """JSON has no nan: what is unknown is null."""
        terms = {name: value if math.isfinite(value) else None for name, value in self.terms.items()}
        return {**asdict(self), "terms": terms}


class DecisionLog:
    """Appends to `directory`/decisions.jsonl. Not locked: one thread owns it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._latest: deque[DecisionRecord] = deque(maxlen=NUM_IN_MEMORY)
        self._file = RotatingFileHandler(
            directory / "decisions.jsonl", maxBytes=BYTES_PER_FILE, backupCount=NUM_OLDER_FILES, delay=True
        )

    def append(self, record: DecisionRecord, snapshot: Snapshot | None) -> None:
        """`snapshot` goes to disk only."""
        self._latest.append(record)
        line = record.to_dict() | {"snapshot": None if snapshot is None else asdict(snapshot)}
        text = json.dumps(line, ensure_ascii=False)
        self._file.emit(logging.LogRecord("decisions", logging.INFO, "", 0, text, None, None))

    def since(self, number: int, limit: int, *, only_changes: bool = False) -> list[DecisionRecord]:
        """The latest `limit` of those numbered above `number`, oldest first; `only_changes`: that asked for another
        number of replicas than there were."""
        found = [
            record
            for record in self._latest
            if record.number > number and (not only_changes or record.desired != record.current)
        ]
        return found[-limit:] if limit > 0 else []

    @property
    def last(self) -> DecisionRecord | None:
        return self._latest[-1] if self._latest else None

    def close(self) -> None:
        self._file.close()
