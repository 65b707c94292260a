"""Drafts for the sequences of a step: who gets one, and how long.

A step that computes a sequence's next token can judge guesses of the tokens after it as well: each costs one more token
of work and saves, if it is right, a place in a later step. So a guess is worth its price where

    chance to be right  ≥  price of a token · sequences / time of a plain step

which is small for a single sequence and near 1 in a large batch, where arithmetic is what a step waits for: then, or
when guesses are wrong too often, there are no drafts. Drafts take nothing that anyone else could use: they get what a
batch leaves of the budget, and blocks beyond one for each running sequence.
"""

from __future__ import annotations

from itertools import takewhile

from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_manager import BlockManager
from service.engine.drafter import Drafter
from service.engine.synthetic import StepCost


class Speculator:
    """Drafts of at most `num_speculative_tokens`; `cost` is what a step is expected to cost."""

    def __init__(self, blocks: BlockManager, *, num_speculative_tokens: int, cost: StepCost) -> None:
        self._blocks = blocks
        self._num_speculative_tokens = num_speculative_tokens
        self._cost = cost

    def extend(self, batch: Batch, budget: int) -> None:
        """Add drafts of at most `budget` tokens to a batch that is scheduled, for the oldest first."""
        if self._num_speculative_tokens == 0 or budget == 0:
            return
        least_chance = self._least_chance(batch)
        for i, scheduled in enumerate(batch.scheduled):
            draft = self._draft(scheduled, min(budget, self._num_speculative_tokens), least_chance)
            room = self._blocks.stretch(scheduled.sequence, len(draft), num_reserved_blocks=len(batch.scheduled))
            if draft and room:
                batch.scheduled[i] = scheduled.with_draft(tuple(draft[:room]))
                budget -= room

    def _draft(self, scheduled: ScheduledSequence, limit: int, least_chance: float) -> list[int]:
        """What may follow. It never ends the sequence, so that only the last token of a step can."""
        sequence = scheduled.sequence
        limit = min(limit, sequence.sampling.max_tokens - sequence.num_output_tokens - 1)
        if limit <= 0 or sequence.num_uncomputed_tokens > 1 or sequence.num_output_tokens == 0:
            return []
        if sequence.drafter is None:
            sequence.drafter = Drafter()
        draft = sequence.drafter.propose(sequence.token_ids, limit=limit, least_chance=least_chance)
        return list(takewhile(lambda token_id: token_id not in sequence.stop_token_ids, draft))

    def _least_chance(self, batch: Batch) -> float:
        num_sequences = len(batch.scheduled)
        plain_s = self._cost.of(num_sequences, 0, sum(scheduled.end for scheduled in batch.scheduled))
        return self._cost.per_prefill_token_s * num_sequences / plain_s if plain_s > 0.0 else 0.0
