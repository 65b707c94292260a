"""Faults on purpose, in the synthetic runner; `python -m service.bench.chaos` shows what the service makes of them.

Who is struck is decided by a hash of the request, so that a step that is tried again fails again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

from service.engine.batch import Batch
from service.engine.runner_protocol import SequenceResult
from service.engine.synthetic import SyntheticRunner
from service.errors import ConfigError

HANG_S = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Shares, 0-1, of all requests. Raises ConfigError, naming the field.

    `error`: its sequences report that they cannot go on; `crash`: a step with them raises; `stall`: their first step
    takes `stall_s` longer; `hang`: it never ends.
    """

    error: float = 0.0
    crash: float = 0.0
    stall: float = 0.0
    stall_s: float = 1.0
    hang: float = 0.0

    def __post_init__(self) -> None:
        for name in ("error", "crash", "stall", "hang"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must be between 0 and 1.")
        if self.stall_s < 0.0:
            raise ConfigError("stall_s must be 0 or more.")


class InjectedError(Exception):
    """A step that was made to fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultyRunner(SyntheticRunner):
    """Implements `Runner`: the synthetic one, with `faults`."""

    faults: Faults
    sleep: Callable[[float], None] = time.sleep

    def execute(self, batch: Batch) -> list[SequenceResult]:
        """Raises InjectedError."""
        faults = self.faults
        begun = [each.sequence.request_id for each in batch.scheduled if each.start == 0]
        if any(_is_struck(request_id, "hang", faults.hang) for request_id in begun):
            self.sleep(HANG_S)
        if any(_is_struck(request_id, "stall", faults.stall) for request_id in begun):
            self.sleep(faults.stall_s)
        if any(_is_struck(each.sequence.request_id, "crash", faults.crash) for each in batch.scheduled):
            raise InjectedError
        results = SyntheticRunner.execute(self, batch)
        return [
            SequenceResult(error="This sequence was made to fail.")
            if _is_struck(scheduled.sequence.request_id, "error", faults.error)
            else result
            for scheduled, result in zip(batch.scheduled, results, strict=True)
        ]


def _is_struck(request_id: str, fault: str, share: float) -> bool:
    return share > 0.0 and crc32(f"{fault} {request_id}".encode()) < share * 2**32
