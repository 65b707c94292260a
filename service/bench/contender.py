"""What is measured of every engine, and the process around it: one round of work for each line of JSON it reads.

    {"prompts": [[1, 2], …], "num_steps": 16}   ->  {"prefill_s": 0.2, "step_s": [0.01, …]}
    {"requests": [[[1, 2], 20], …]}             ->  {"seconds": 3.4}
    (once, before)                                  {"ready": true}

Runs in the environment of any peer: standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Prompt = Sequence[int]
Asked = tuple[Prompt, int]
"""A prompt, and how many tokens are to follow it."""


class Contender(Protocol):
    """Greedy generation that no token of the vocabulary ends."""

    def start(self, prompts: Sequence[Prompt], num_steps: int) -> object:
        """Compute all prompts and each one's first token; `num_steps` more will be asked for."""

    def step(self) -> object:
        """One more token of each sequence."""

    def finish(self) -> None:
        """Forget the sequences."""

    def answer(self, requests: Sequence[Asked]) -> None:
        """All that is asked for, put into batches as this engine does it best."""


def serve(load: Callable[[], Contender]) -> None:
    """Answer rounds until standard input ends. What libraries print goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1) as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        contender = load()
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            print(json.dumps(_round(contender, json.loads(line))), file=answers)


def _round(contender: Contender, asked: Any) -> dict[str, object]:
    if "requests" in asked:
        return {"seconds": seconds(lambda: contender.answer(asked["requests"]))}
    num_steps = asked["num_steps"]
    prefill_s = seconds(lambda: contender.start(asked["prompts"], num_steps))
    step_s = [seconds(contender.step) for _ in range(num_steps)]
    contender.finish()
    return {"prefill_s": prefill_s, "step_s": step_s}


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
