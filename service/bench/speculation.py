"""What guessing the next tokens brings: the same requests with and without, in turns, on the default model.

    python -m service.bench.speculation

Copying: a text whose continuation is itself. Prose: a story, greedy and with a temperature; small models repeat
themselves when they are greedy. The tokens are the same either way, which is checked.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

import click
from rich.console import Console
from rich.table import Table

from service.assembly import Engine, load_engine
from service.config import load_settings
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.errors import EngineError
from service.types import GenerateRequest, SamplingParams

NUM_TOKENS = 64
TEXTS = (
    "The harbour master keeps a list of every boat that came in during the storm: nine trawlers from the north, two "
    "ferries that should have been in Calais, a yacht without a mast and a barge full of wet cement. The cement set "
    "before anyone could unload it, and the barge has been part of the quay ever since.",
    "To clean the filter, switch the pump off and wait until the red lamp goes out. Turn the lid to the left, lift the "
    "basket out and rinse it under cold water; never use soap. Check the rubber ring for cracks, put the basket back, "
    "and turn the lid to the right until it clicks. Then switch the pump on and open the vent for ten seconds.",
    "def total(orders):\n    result = 0\n    for order in orders:\n        if order.is_paid:\n            result += "
    "order.price * order.count\n    return result\n\n\ndef largest(orders):\n    result = None\n    for order in "
    "orders:\n        if result is None or order.price > result.price:\n            result = order\n    return result",
    "Dear Mrs Lindqvist, thank you for your letter of 3 May about the bill for the second floor. The meter was read on "
    "12 April and showed 40,188 units, not 41,088 as printed. We have sent a new bill for 211.40, and the difference "
    "of 96.20 will be paid back to your account within ten days. Please excuse the mistake.",
)


@dataclass(frozen=True, slots=True)
class Task:
    """`prompt` makes one of a text."""

    name: str
    prompt: Callable[[Engine, str], str]
    temperature: float


@dataclass(slots=True)
class Measured:
    """Of all rounds: output tokens per second, and what became of the drafts."""

    tokens_per_s: list[float] = field(default_factory=list)
    num_drafted: int = 0
    num_accepted: int = 0
    num_tokens: int = 0


def _twice(_: Engine, text: str) -> str:
    return f"{text}\n\n{text}\n\n{text[:40]}"


def _story(engine: Engine, text: str) -> str:
    template = engine.tokenizer.chat_template
    assert template is not None, "the default model has one"
    return template.render([{"role": "user", "content": f"Write a story that begins like this: {text}"}])


TASKS = (
    Task("copying", _twice, 0.0),
    Task("prose, greedy", _story, 0.0),
    Task("prose, temperature 0.8", _story, 0.8),
)


def measure(engine: Engine, config: EngineConfig, task: Task, batch: int, into: Measured) -> list[list[int]]:
    """Answer `batch` requests at once, until they have NUM_TOKENS each on average: who is guessed well has more.

    The time of the prompts does not count. Returns the answers.
    """
    core = EngineCore(engine.model.runner, config, time.monotonic)
    answers: list[list[int]] = [[] for _ in range(batch)]
    for i, text in enumerate(islice(cycle(TEXTS), batch)):
        core.add(_request(engine, task, text, i, batch * NUM_TOKENS))
    started_at: float | None = None
    num_before = 0
    while sum(map(len, answers)) < batch * NUM_TOKENS:
        if started_at is None and all(answers):
            started_at, num_before = time.monotonic(), sum(map(len, answers))
        events, stats = core.step()
        for event in events:
            if event.error is not None:
                raise EngineError(event.error)
            answers[int(event.request_id)] += event.token_ids
        into.num_drafted += sum(num_drafted for num_drafted, _ in stats.drafts)
        into.num_accepted += sum(num_accepted for _, num_accepted in stats.drafts)
    assert started_at is not None, "answers are longer than a token"
    into.tokens_per_s.append((sum(map(len, answers)) - num_before) / (time.monotonic() - started_at))
    into.num_tokens += sum(map(len, answers))
    for i in range(batch):
        core.abort(str(i))
    return answers


def _request(engine: Engine, task: Task, text: str, number: int, max_tokens: int) -> GenerateRequest:
    return GenerateRequest(
        request_id=str(number),
        prompt_token_ids=tuple(engine.tokenizer.encode(task.prompt(engine, text))),
        sampling=SamplingParams(
            max_tokens=max_tokens, temperature=task.temperature, top_p=0.95, seed=number, ignore_eos=True
        ),
        arrival_at=time.monotonic(),
    )


@click.command()
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 4, 16), show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--tokens", default=4, show_default=True, help="most that are guessed in a step")
def main(batches: tuple[int, ...], rounds: int, tokens: int) -> None:
    """Print tokens a second without and with speculation."""
    settings = load_settings(flags={"prefix_caching": False}, environment=os.environ).settings
    engine = load_engine(settings)
    off = replace(engine.core.config, num_speculative_tokens=0, queue_timeout_s=math.inf)
    table = Table("task", "batch", "off, tokens/s", "on, tokens/s", "ratio", "guesses right", "of all tokens", box=None)
    for task in TASKS:
        for batch in batches:
            plain, drafted = Measured(), Measured()
            for _ in range(rounds):
                expected = measure(engine, off, task, batch, plain)
                answers = measure(engine, replace(off, num_speculative_tokens=tokens), task, batch, drafted)
                if any(
                    one != other
                    for pair in zip(answers, expected, strict=True)
                    for one, other in zip(*pair, strict=False)
                ):
                    raise EngineError("The tokens are not those that come without speculation.")
            table.add_row(task.name, str(batch), *_cells(plain, drafted))
    Console(width=120).print(table)


def _cells(plain: Measured, drafted: Measured) -> tuple[str, ...]:
    off, on = statistics.median(plain.tokens_per_s), statistics.median(drafted.tokens_per_s)
    return (
        f"{off:.0f}",
        f"{on:.0f}",
        f"{on / off:.2f}",
        f"{drafted.num_accepted} of {drafted.num_drafted}",
        f"{drafted.num_accepted / drafted.num_tokens:.0%}",
    )


if __name__ == "__main__":
    main()
