"""Which sequences the next step computes, and how many tokens of each.

`running + waiting` is always in order of arrival: sequences are admitted from the front of waiting to the end of
running, and preempted from the end of running to the front of waiting. So older ones come first everywhere, and the
oldest always progresses: it may take the blocks of all others, and alone it fits (the engine admits nothing that does
not).
"""

from __future__ import annotations

from collections import deque

from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_manager import BlockManager
from service.engine.runner_protocol import SequenceResult
from service.engine.sequence import Sequence, SequenceStatus


class Scheduler:
    """At most `max_num_seqs` sequences run, and a step computes at most `max_num_batched_tokens` tokens."""

    def __init__(self, blocks: BlockManager, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        assert 0 < max_num_seqs <= max_num_batched_tokens  # so that every running sequence progresses every step
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: deque[Sequence] = deque()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_prefill_left(self) -> int:
        """Known tokens that wait to be computed, but for the one that a decoding sequence computes next."""
        waiting = sum(sequence.num_uncomputed_tokens for sequence in self._waiting)
        return waiting + sum(sequence.num_uncomputed_tokens - 1 for sequence in self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def schedule(self) -> Batch:
        """Fill the budget: running sequences first, then waiting ones, oldest first. Empty only when there are none."""
        batch = Batch()
        budget = self._max_num_batched_tokens
        for sequence in tuple(self._running):
            if not self._make_room(sequence, batch):
                break
            budget -= self._schedule(sequence, budget, batch)
        while budget > 0 and self._admit_next():
            sequence = self._running[-1]
            batch.admitted.append(sequence)
            budget -= self._schedule(sequence, budget, batch)
        return batch

    def commit(self, scheduled: ScheduledSequence, result: SequenceResult) -> None:
        """Take note that a scheduled sequence is computed, and of what that brought."""
        assert scheduled.samples == (result.token_id is not None)
        sequence, start = scheduled.sequence, scheduled.start
        sequence.num_computed_tokens = scheduled.end
        self._blocks.cache_computed(sequence, start)
        sequence.prompt_logprobs.extend(result.prompt_logprobs)
        if result.token_id is not None:
            sequence.token_ids.append(result.token_id)

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """End a waiting or running sequence and free its blocks; with `forget` their content is not reused."""
        queue = self._running if sequence.status is SequenceStatus.RUNNING else self._waiting
        queue.remove(sequence)
        sequence.status = SequenceStatus.FINISHED
        self._blocks.free(sequence, forget=forget)

    def check_integrity(self) -> None:
        """Raise EngineError unless every block is accounted for."""
        self._blocks.check_integrity(sequence.block_table for sequence in (*self._running, *self._waiting))

    def _schedule(self, sequence: Sequence, budget: int, batch: Batch) -> int:
        # Only the youngest can have more than one token to compute, so the budget reaches everyone who runs.
        num_new_tokens = min(sequence.num_uncomputed_tokens, budget)
        assert num_new_tokens > 0
        batch.scheduled.append(ScheduledSequence(sequence, num_new_tokens))
        return num_new_tokens

    def _make_room(self, sequence: Sequence, batch: Batch) -> bool:
        """Give a running sequence its blocks, at the cost of younger ones; False when it had to go itself."""
        if sequence.status is not SequenceStatus.RUNNING:
            return False  # preempted for an older one in this step, as are all younger than it
        while not self._blocks.grow(sequence):
            youngest = self._running.pop()
            self._preempt(youngest)
            batch.num_preemptions += 1
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the front of waiting, to be computed again (or found in the prefix cache, if it is still there)."""
        self._blocks.free(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        sequence.status = SequenceStatus.WAITING
        self._waiting.appendleft(sequence)

    def _admit_next(self) -> bool:
        """Let the oldest waiting sequence run, if it may."""
        if not self._waiting or len(self._running) >= self._max_num_seqs:
            return False
        sequence = self._waiting[0]
        # One block stays for each running sequence, so that admission does not force a preemption a token later.
        if self._awaits_prefix(sequence) or not self._blocks.admit(sequence, num_reserved_blocks=len(self._running)):
            return False
        self._running.append(self._waiting.popleft())
        sequence.status = SequenceStatus.RUNNING
        if sequence.num_preemptions == 0:
            sequence.num_prefix_hit_tokens = sequence.num_computed_tokens
        return True

    def _awaits_prefix(self, sequence: Sequence) -> bool:
        """Whether the youngest running sequence will first compute a block that `sequence` then finds in the prefix
        cache.

        This is how the n sequences of a request, and simultaneous requests with one system prompt, compute it once. To
        look at the youngest is enough: all older ones have computed their prompts, or it would not run yet.
        """
        if not self._running:
            return False
        youngest, block_size = self._running[-1], self._blocks.block_size
        block = youngest.num_computed_tokens // block_size
        return (
            block < self._blocks.num_sharable_blocks(sequence)
            and (block + 1) * block_size <= youngest.num_tokens
            and self._blocks.digest(youngest, block) == self._blocks.digest(sequence, block)
        )
