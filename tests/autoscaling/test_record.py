"""Decisions on record."""

from __future__ import annotations

import json
import math
from pathlib import Path

from service.autoscaling.record import DecisionLog, DecisionRecord
from tests.autoscaling.strategies import ready, snapshot, stats


def record(number: int, current: int = 1, desired: int = 1) -> DecisionRecord:
    return DecisionRecord(
        number=number,
        at=1000.0 + number,
        current=current,
        desired=desired,
        reason=f"{current} → {desired}: words.",
        terms={"work": 0.5, "held_price": math.nan},
    )


def test_the_file_holds_what_was_seen_and_said(tmp_path: Path) -> None:
    """A line is JSON, with its snapshot; what is unknown is null."""
    log = DecisionLog(tmp_path)
    log.append(record(1, 1, 2), snapshot(7.0, ready(0, stats(7.0, num_requests=5))))
    log.close()
    line = json.loads((tmp_path / "decisions.jsonl").read_text())
    assert (line["current"], line["desired"], line["terms"]["held_price"]) == (1, 2, None)
    assert line["snapshot"]["replicas"][0]["stats"]["num_requests"] == 5


def test_the_latest_are_found(tmp_path: Path) -> None:
    """Those above a number, the latest of them, and only changes if asked."""
    log = DecisionLog(tmp_path)
    for number in range(1, 7):
        log.append(record(number, 1, 2 if number in {2, 5} else 1), None)
    assert [each.number for each in log.since(0, 3)] == [4, 5, 6]
    assert [each.number for each in log.since(4, 100)] == [5, 6]
    assert [each.number for each in log.since(0, 100, only_changes=True)] == [2, 5]
    assert log.since(6, 100) == []
    assert log.last is not None
    assert log.last.number == 6
    log.close()
