"""Stand-ins for the model and for time, and the few lines that most tests of the engine begin with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from zlib import crc32

from service.engine.batch import Batch, ScheduledSequence
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.runner_protocol import SequenceResult
from service.engine.verification import Position, verify
from service.types import GenerateRequest, SamplingParams, StepStats, TokenEvent, TokenLogprob

VOCAB_SIZE = 50
EOS = 49
POISON = 48
"""Computing it fails its own sequence."""
BOMB = 47
"""Computing it fails the whole step."""


Says = Callable[[list[int]], int]
"""The next token after a history."""


@dataclass
class FakeClock:
    """Time that passes when told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def next_token_id(history: list[int]) -> int:
    """What the fake model says after `history`: all of it matters, and the special tokens never come by themselves."""
    return crc32(bytes(history)) % BOMB


def repetitive_token_id(history: list[int]) -> int:
    """Another fake model, which soon goes round in circles: what its latest tokens were followed by, comes again."""
    return crc32(bytes(history[-2:])) % 4


def expected_output(prompt: tuple[int, ...], max_tokens: int, says: Says = next_token_id) -> tuple[int, ...]:
    """What a request must get, whatever else goes on in the engine."""
    history = list(prompt)
    for _ in range(max_tokens):
        history.append(says(history))
    return tuple(history[len(prompt) :])


def logprob_of(token_id: int, position: int) -> TokenLogprob:
    """A recognisable score for the token at `position`."""
    return TokenLogprob(token_id, -position - token_id / 100)


@dataclass(frozen=True)
class NamedAdapter:
    """An `Adapter` that changes nothing."""

    name: str
    key: bytes


class CacheViolation(BaseException):
    """The engine is wrong. No `Exception`, which the engine would take for a failure of the model."""


@dataclass(kw_only=True)
class HistoryRunner:
    """A `Runner` whose KV cache holds token ids: it answers by what it finds through the block table.

    Raises CacheViolation where a sequence would not find its own tokens there, or where two write to one slot.
    """

    num_blocks: int = 64
    block_size: int = 4
    max_model_len: int = 64
    vocab_size: int = VOCAB_SIZE
    eos_token_ids: frozenset[int] = frozenset({EOS})
    says: Says = next_token_id
    script: dict[int, int] = field(default_factory=dict)  # output number → token, instead of the hash
    batches: list[list[tuple[str, int, int]]] = field(default_factory=list)  # request id, index, new tokens
    cache: dict[int, int] = field(default_factory=dict)

    def execute(self, batch: Batch) -> list[SequenceResult]:
        self.batches.append([(s.sequence.request_id, s.sequence.index, s.num_new_tokens) for s in batch.scheduled])
        if any(BOMB in scheduled.token_ids for scheduled in batch.scheduled):
            raise MemoryError("boom")
        self._write(batch)
        return [self._answer(scheduled) for scheduled in batch.scheduled]

    def _slots(self, scheduled: ScheduledSequence, positions: range) -> list[int]:
        size, table = self.block_size, scheduled.block_table
        return [table[position // size] * size + position % size for position in positions]

    def _write(self, batch: Batch) -> None:
        written: set[int] = set()
        for scheduled in batch.scheduled:
            slots = self._slots(scheduled, scheduled.positions)
            if written & set(slots):
                raise CacheViolation("two sequences write to one slot")
            written.update(slots)
            wrong = POISON in scheduled.token_ids
            self.cache.update(zip(slots, [-1] * len(slots) if wrong else scheduled.token_ids, strict=True))

    def _answer(self, scheduled: ScheduledSequence) -> SequenceResult:
        sequence = scheduled.sequence
        if POISON in scheduled.token_ids:
            return SequenceResult(error="not a number")
        visible = [self.cache.get(slot, -1) for slot in self._slots(scheduled, range(scheduled.end))]
        if visible != [*sequence.token_ids, *scheduled.draft_token_ids][: scheduled.end]:
            raise CacheViolation("the block table leads to someone else's tokens")
        scores = tuple(logprob_of(sequence.token_ids[p + 1], p + 1) for p in scheduled.prompt_logprob_positions)
        [result] = verify([scheduled], self._sample)
        return result._replace(prompt_logprobs=scores)

    def _sample(self, positions: Sequence[Position]) -> list[SequenceResult]:
        results = []
        for _, _, sequence in positions:
            token_id = self.script.get(sequence.num_output_tokens, self.says(sequence.token_ids))
            logprob = logprob_of(token_id, sequence.num_tokens)
            results.append(SequenceResult((token_id,), () if sequence.sampling.logprobs is None else (logprob,)))
        return results


_numbers: Iterator[int] = count()


def request(
    *prompt: int, request_id: str | None = None, n: int = 1, arrival_at: float = 100.0, **sampling: Any
) -> GenerateRequest:
    """A request with a fresh id; greedy, 4 tokens, unless `sampling` says otherwise."""
    return GenerateRequest(
        request_id=f"r{next(_numbers)}" if request_id is None else request_id,
        prompt_token_ids=prompt or (1, 2, 3),
        sampling=SamplingParams(**{"max_tokens": 4, "temperature": 0.0, **sampling}),
        n=n,
        arrival_at=arrival_at,
    )


def engine(runner: HistoryRunner | None = None, clock: FakeClock | None = None, **config: Any) -> EngineCore:
    """A core with small limits."""
    limits = {"max_num_seqs": 4, "max_num_batched_tokens": 16, **config}
    return EngineCore(
        runner or HistoryRunner(),
        EngineConfig(**limits),
        clock or FakeClock(),
    )


def run(core: EngineCore, *requests: GenerateRequest) -> list[TokenEvent]:
    """All events of `requests`, added together."""
    for each in requests:
        core.add(each)
    return [event for events, _ in steps(core) for event in events]


def steps(core: EngineCore, limit: int = 1000) -> Iterator[tuple[list[TokenEvent], StepStats]]:
    """Step until there is nothing to do."""
    for _ in range(limit):
        if not core.has_work:
            return
        yield core.step()
    raise AssertionError(f"the engine is not done after {limit} steps")


def output(events: list[TokenEvent], request_id: str, index: int = 0) -> tuple[int, ...]:
    """The tokens that `events` bring one sequence."""
    mine = [event for event in events if (event.request_id, event.index) == (request_id, index)]
    return tuple(token_id for event in mine for token_id in event.token_ids)
