"""Offline: the same work for every entrant, in turns, so that a change of the machine's speed hits all alike."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from service.bench.peers.entrants import Entrant
from service.errors import StartupError

NUM_STEPS = 16
PROMPT_TOKENS = 64
MIXED_REQUESTS = 64
MIXED_PROMPT = (16, 256)
MIXED_OUTPUT = (16, 64)
LEAST_VOCABULARY = 32_000  # tokens that every model here has
GOODBYE_S = 30

Rates = Mapping[str, Mapping[str, Sequence[float]]]
"""Tokens per second by load, then by entrant, of each round."""


@dataclass(frozen=True, slots=True)
class Load:
    """`ask` makes a round's work, `rate` is tokens per second of the answer to it."""

    name: str
    ask: Callable[[random.Random], dict[str, Any]]
    rate: Callable[[dict[str, Any], dict[str, Any]], float]


def decode(size: int) -> Load:
    """Steps of `size` sequences, each with a short context."""

    def ask(rng: random.Random) -> dict[str, Any]:
        return {"prompts": [_prompt(rng, PROMPT_TOKENS) for _ in range(size)], "num_steps": NUM_STEPS}

    return Load(f"decode {size}", ask, lambda _, answer: size / statistics.median(answer["step_s"]))


def prefill(num_tokens: int) -> Load:
    """One prompt, up to its first token."""

    def ask(rng: random.Random) -> dict[str, Any]:
        return {"prompts": [_prompt(rng, num_tokens)], "num_steps": 0}

    return Load(f"prefill {num_tokens}", ask, lambda _, answer: num_tokens / answer["prefill_s"])


def mixed() -> Load:
    """Requests of all sizes, all at once: output tokens per second until the last is answered."""

    def ask(rng: random.Random) -> dict[str, Any]:
        sizes = [(rng.randint(*MIXED_PROMPT), rng.randint(*MIXED_OUTPUT)) for _ in range(MIXED_REQUESTS)]
        return {"requests": [[_prompt(rng, num_prompt), num_output] for num_prompt, num_output in sizes]}

    def rate(asked: dict[str, Any], answer: dict[str, Any]) -> float:
        return float(sum(num_output for _, num_output in asked["requests"]) / answer["seconds"])

    return Load(f"mixed {MIXED_REQUESTS}", ask, rate)


def compare(entrants: Sequence[Entrant], loads: Sequence[Load], num_rounds: int, say: Callable[[str], None]) -> Rates:
    """The same random prompts for all. Who fails is out, and said."""
    rates: dict[str, dict[str, list[float]]] = {load.name: defaultdict(list) for load in loads}
    rng = random.Random(0)
    running: dict[str, _Process] = {}
    try:
        for entrant in entrants:
            with _leaving(entrant.name, running, say):
                running[entrant.name] = _Process(entrant)
                running[entrant.name].answer()
        for load in loads:
            for _ in range(num_rounds):
                work = load.ask(rng)
                for name, process in tuple(running.items()):
                    with _leaving(name, running, say):
                        rate = load.rate(work, process.ask(work))
                        rates[load.name][name].append(rate)
    finally:
        for process in running.values():
            process.close()
    return rates


@contextmanager
def _leaving(name: str, running: dict[str, _Process], say: Callable[[str], None]) -> Iterator[None]:
    """Whose process has ended takes no part any more."""
    try:
        yield
    except StartupError as error:
        say(f"{name} has ended: {error}")
        running.pop(name).close()


class _Process:
    """An entrant at work; its first answer says that it is ready."""

    def __init__(self, entrant: Entrant) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            entrant.command,
            env=os.environ | entrant.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def ask(self, work: object) -> dict[str, Any]:
        """Raises StartupError if there is no answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps(work), file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next one. Raises StartupError with the last thing it said."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()  # its complaint comes after the end of its answers
            self._errors.seek(0)
            said = [line.strip() for line in self._errors if line.strip()]
            raise StartupError(said[-1] if said else f"exit status {status}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """The end of its input ends it."""
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=GOODBYE_S)
        self._process.kill()
        self._errors.close()


def _prompt(rng: random.Random, num_tokens: int) -> list[int]:
    return [rng.randrange(LEAST_VOCABULARY) for _ in range(num_tokens)]
