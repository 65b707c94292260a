"""A runner without a model: steps take the time of a cost model and tokens are a hash of the tokens before them.

For load, scaling and protocol tests: large fleets on few cores, in real time or (with another `sleep`) in virtual time.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from zlib import crc32

from service.engine.batch import Batch, ScheduledSequence
from service.engine.runner_protocol import SequenceResult
from service.engine.sequence import Sequence
from service.engine.verification import Position, verify
from service.errors import ConfigError, GrammarError
from service.types import TokenLogprob

_NUM_HASHED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """How long a step takes, in seconds.

    `base_s` + `per_sequence_s` · sequences + `per_prefill_token_s` · (new tokens beyond the first of each sequence)
    + `per_context_token_s` · (tokens in the cache that the sequences attend to).
    """

    base_s: float = 0.0
    per_sequence_s: float = 0.0
    per_prefill_token_s: float = 0.0
    per_context_token_s: float = 0.0

    def step_s(self, batch: Batch) -> float:
        num_sequences = len(batch.scheduled)
        num_context_tokens = sum(scheduled.end for scheduled in batch.scheduled)
        return self.of(num_sequences, batch.num_new_tokens - num_sequences, num_context_tokens)

    def of(self, num_sequences: float, num_prefill_tokens: float, num_context_tokens: float) -> float:
        """By the numbers that the law names."""
        return (
            self.base_s
            + self.per_sequence_s * num_sequences
            + self.per_prefill_token_s * num_prefill_tokens
            + self.per_context_token_s * num_context_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticRunner:
    """Implements `Runner`. Token ids are 0 ≤ id < vocab_size - 1; the last id is the end-of-sequence token.

    It comes as output token number `num_output_tokens` where the sequence may stop, and never if that is None; under a
    grammar, where nothing else may come. Sampling parameters do not change the tokens, and each token is certain: its
    log-probability is 0.
    Raises ConfigError, naming the setting.
    """

    cost: StepCost = StepCost()
    num_blocks: int = 4096
    block_size: int = 16
    max_model_len: int = 8192
    vocab_size: int = 32000
    num_output_tokens: int | None = None
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        for name, least in (("num_blocks", 1), ("block_size", 1), ("max_model_len", 2), ("vocab_size", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}.")

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset({self.vocab_size - 1})

    def execute(self, batch: Batch) -> list[SequenceResult]:
        """Sleep as long as the step takes."""
        step_s = self.cost.step_s(batch)
        if step_s > 0.0:
            self.sleep(step_s)
        return [
            result._replace(prompt_logprobs=_prompt_logprobs(scheduled))
            for scheduled, result in zip(batch.scheduled, verify(batch.scheduled, self._sample), strict=True)
        ]

    def _sample(self, positions: Rows[Position]) -> list[SequenceResult]:
        return [self._result(position.sequence) for position in positions]

    def _result(self, sequence: Sequence) -> SequenceResult:
        try:
            token_id = self._next_token_id(sequence)
        except GrammarError as error:
            return SequenceResult(error=str(error))
        num_top = sequence.sampling.logprobs
        logprob = TokenLogprob(token_id, 0.0, ((token_id, 0.0),) if num_top else ())
        return SequenceResult((token_id,), () if num_top is None else (logprob,))

    def _next_token_id(self, sequence: Sequence) -> int:
        eos_token_id = self.vocab_size - 1
        hashed = crc32(array("q", [sequence.num_tokens, *sequence.token_ids[-_NUM_HASHED:]]))
        if sequence.matcher is not None:
            mask = sequence.matcher.mask(sequence.output_token_ids)
            allowed = [i for i in range(min(eos_token_id, 8 * len(mask))) if mask[i // 8] >> i % 8 & 1]
            return allowed[hashed % len(allowed)] if allowed else eos_token_id
        is_last = self.num_output_tokens is not None and sequence.num_output_tokens + 1 >= self.num_output_tokens
        if is_last and eos_token_id in sequence.stop_token_ids - sequence.forbidden_token_ids:
            return eos_token_id
        return hashed % eos_token_id


def _prompt_logprobs(scheduled: ScheduledSequence) -> tuple[TokenLogprob, ...]:
    token_ids = scheduled.sequence.token_ids
    return tuple(TokenLogprob(token_ids[position + 1], 0.0) for position in scheduled.prompt_logprob_positions)
