"""What one step computes, told without tensors. Valid from `Scheduler.schedule` until its results are committed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from service.engine.sequence import Sequence


class ScheduledSequence(NamedTuple):
    """The step computes tokens [start, end) of `sequence`; K and V of [0, start) are in the cache already.

    The last `draft_token_ids` of them are not known but guessed: they follow all the known ones, if there are any.
    Position p lives in slot `block_table[p // block_size] * block_size + p % block_size`; the table covers `end` at
    least.
    """

    sequence: Sequence
    num_new_tokens: int
    draft_token_ids: tuple[int, ...] = ()

    def with_draft(self, draft_token_ids: tuple[int, ...]) -> ScheduledSequence:
        """The same with another draft, or with none."""
        return ScheduledSequence(self.sequence, self.num_known_tokens + len(draft_token_ids), draft_token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Of the new ones."""
        return self.num_new_tokens - len(self.draft_token_ids)

    @property
    def start(self) -> int:
        return self.sequence.num_computed_tokens

    @property
    def end(self) -> int:
        """Number of tokens in the cache after the step: what the last new token attends to."""
        return self.sequence.num_computed_tokens + self.num_new_tokens

    @property
    def token_ids(self) -> list[int]:
        return [*self.sequence.token_ids[self.start : self.end], *self.draft_token_ids]

    @property
    def positions(self) -> range:
        return range(self.start, self.end)

    @property
    def block_table(self) -> list[int]:
        return self.sequence.block_table

    @property
    def completes(self) -> bool:
        """Whether all known tokens are computed after the step."""
        return self.num_known_tokens == self.sequence.num_uncomputed_tokens

    @property
    def samples(self) -> bool:
        """Whether the logits of the last known token give the next one, and those of a draft what follows it."""
        return self.completes and self.sequence.sampling.max_tokens > 0

    @property
    def prompt_logprob_positions(self) -> range:
        """Positions p of this chunk whose logits give a wanted log-probability: of prompt token p + 1. Mostly empty."""
        sequence = self.sequence
        if not sequence.wants_prompt_logprobs:
            return range(0)
        return range(
            max(self.start, len(sequence.prompt_logprobs)),
            min(self.end, sequence.num_prompt_tokens - 1),
        )


@dataclass(slots=True)
class Batch:
    """The sequences of one step, oldest first.

    `admitted` are those among them that came from waiting; `num_preemptions` counts those sent back to it.
    """

    scheduled: list[ScheduledSequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    num_preemptions: int = 0

    @property
    def num_new_tokens(self) -> int:
        return sum(scheduled.num_new_tokens for scheduled in self.scheduled)

    @property
    def num_draft_tokens(self) -> int:
        return sum(len(scheduled.draft_token_ids) for scheduled in self.scheduled)
