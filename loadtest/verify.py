"""Does load change answers? Greedy requests that were answered under load are repeated alone and must give the same
text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.client import Client, Patience
from loadtest.records import Outcome, Record
from loadtest.results import Difference, Verification

MAX_REPEATED = 100
MAX_DIFFERENCES = 5
CONTEXT_CHARS = 30


@dataclass(frozen=True, slots=True)
class Answered:
    """What was asked (the body as sent) and answered under load."""

    index: int
    body: bytes
    text: str


def read_answered(paths: Iterable[Path]) -> list[Answered]:
    """At most `MAX_REPEATED` of them, spread over the run."""
    found = sorted(_lines(paths), key=lambda answered: answered.index)
    if len(found) <= MAX_REPEATED:
        return found
    return [found[index] for index in np.linspace(0, len(found) - 1, MAX_REPEATED).astype(int)]


def _lines(paths: Iterable[Path]) -> Iterator[Answered]:
    for path in paths:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            yield Answered(entry["index"], entry["body"].encode(), entry["text"])


async def verify(answers: Iterable[Answered], client: Client, api_key: str | None, timeout_s: float) -> Verification:
    """Repeat each alone, one after the other."""
    checked = equal = failed = 0
    differences: list[Difference] = []
    for answered in answers:
        now_s = client.timeline.now_s()
        record = Record(index=0, tenant="", conversation=0, turn=0, intended_s=now_s, planned_output_tokens=0)
        text = await client.send(
            record,
            answered.body,
            api_key=api_key,
            patience=Patience(now_s + timeout_s, Outcome.DEADLINE),
            max_retries=3,
        )
        checked += 1
        if record.outcome is not Outcome.OK:
            failed += 1
        elif text == answered.text:
            equal += 1
        elif len(differences) < MAX_DIFFERENCES:
            differences.append(difference(answered.index, answered.text, text))
    return Verification(checked=checked, equal=equal, failed=failed, differences=differences)


def difference(index: int, under_load: str, alone: str) -> Difference:
    """The text around the first character that differs."""
    pairs = enumerate(zip(under_load, alone, strict=False))
    first = next((place for place, (a, b) in pairs if a != b), min(len(under_load), len(alone)))
    part = slice(max(first - CONTEXT_CHARS, 0), first + CONTEXT_CHARS)
    return Difference(index=index, under_load=under_load[part], alone=alone[part])
