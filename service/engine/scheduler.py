"""Which sequences the next step computes, and how many tokens of each.

Within a tenant, `running + waiting` is always in order of arrival: sequences are admitted from the front of waiting to
the end of running, and preempted from the end of running to the front of waiting. So older ones come first, and someone
always progresses: one that is left alone fits (the engine admits nothing that does not). Between tenants the queue
decides who is next (`service.engine.fair_queue`), and who holds more places than a newcomer would makes room for it.
"""

from __future__ import annotations

from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_manager import BlockManager
from service.engine.fair_queue import OUTPUT_COST, FairQueue
from service.engine.runner_protocol import SequenceResult
from service.engine.sequence import Sequence, SequenceStatus
from service.engine.speculator import Speculator

MAX_WAYS_GIVEN = 4
CREDIT_STEPS = 16


class Scheduler:
    """At most `max_num_seqs` sequences run, and a step computes at most `max_num_batched_tokens` tokens."""

    def __init__(
        self, blocks: BlockManager, speculator: Speculator, *, max_num_seqs: int, max_num_batched_tokens: int
    ) -> None:
        assert 0 < max_num_seqs <= max_num_batched_tokens  # so that every running sequence progresses every step
        self._blocks = blocks
        self._speculator = speculator
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting = FairQueue(credit=CREDIT_STEPS * max_num_batched_tokens)
        self._running: list[Sequence] = []
        self._lacks_blocks: Sequence | None = None  # the head of waiting, where there were too few for it

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

    @property
    def adapters(self) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the adapters that running and waiting sequences use."""
        running, waiting = ({s.adapter.name for s in each if s.adapter} for each in (self._running, self._waiting))
        return frozenset(running), frozenset(waiting)

    def add(self, sequence: Sequence) -> None:
        self._waiting.push(sequence)

    def schedule(self) -> Batch:
        """Fill the budget: running sequences first, then waiting ones, then drafts. Empty only when there are none."""
        batch = Batch()
        budget = self._max_num_batched_tokens
        self._give_way(batch)
        for sequence in tuple(self._running):
            if self._make_room(sequence, batch):
                budget -= self._schedule(sequence, budget, batch)
        while budget > 0 and self._admit_next():
            sequence = self._running[-1]
            batch.admitted.append(sequence)
            budget -= self._schedule(sequence, budget, batch)
        self._speculator.extend(batch, budget)
        return batch

    def commit(self, scheduled: ScheduledSequence, result: SequenceResult) -> None:
        """Take note that a scheduled sequence is computed, and of what that brought."""
        assert scheduled.samples == bool(result.token_ids)
        sequence, start = scheduled.sequence, scheduled.start
        sequence.token_ids.extend(result.token_ids)
        sequence.num_computed_tokens = start + scheduled.num_known_tokens + result.num_accepted
        self._blocks.trim(sequence)
        self._blocks.cache_computed(sequence, start)
        sequence.prompt_logprobs.extend(result.prompt_logprobs)
        self._waiting.charge(sequence, OUTPUT_COST * len(result.token_ids))
        if sequence.drafter is not None and scheduled.draft_token_ids:
            sequence.drafter.learn(len(scheduled.draft_token_ids), result.num_accepted)

    def finish(self, sequence: Sequence, *, forget: bool = False) -> None:
        """End a waiting or running sequence and free its blocks; with `forget` their content is not reused."""
        if sequence.status is SequenceStatus.RUNNING:
            self._running.remove(sequence)
            self._waiting.end(sequence)
        else:
            self._waiting.remove(sequence)
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

    def _give_way(self, batch: Batch) -> None:
        """Preempt sequences for the next tenant in waiting, where it has a claim on places and would not get them else.

        Who gave way often enough stays, so that claims cannot keep anything from being done.
        """
        head = self._waiting.head()
        if head is None or not self._running or self._awaits_prefix(head):
            return
        youngest = self._running[-1]
        if youngest.num_uncomputed_tokens > self._max_num_batched_tokens - len(self._running):
            self._preempt_for(head, youngest, 0, batch)  # its prompt would leave nothing
        num_free = self._max_num_seqs - len(self._running)
        if head is self._lacks_blocks and self._running:
            self._preempt_for(head, self._least_entitled(self._running), 0, batch)
        for num_given in range(num_free, self._waiting.num_waiting_with(head)):
            if not (self._running and self._preempt_for(head, self._least_entitled(self._running), num_given, batch)):
                return

    def _preempt_for(self, head: Sequence, running: Sequence, num_given: int, batch: Batch) -> bool:
        """Whether it had to go, for the tenant of `head`, which gets `num_given` places anyway."""
        has_claim = running.num_preemptions < MAX_WAYS_GIVEN and self._waiting.has_claim(head, running, num_given)
        if has_claim:
            self._preempt(running, batch)
        return has_claim

    def _make_room(self, sequence: Sequence, batch: Batch) -> bool:
        """Give a running sequence its blocks, at the cost of those after it; False when it had to go itself."""
        while sequence.status is SequenceStatus.RUNNING and not self._blocks.grow(sequence):
            self._preempt(self._least_entitled(self._running[len(batch.scheduled) :]), batch)
        return sequence.status is SequenceStatus.RUNNING

    def _least_entitled(self, sequences: list[Sequence]) -> Sequence:
        """Of the lowest priority, then of the tenant with the most places, then the youngest."""
        return max(reversed(sequences), key=lambda each: (-each.claim.priority, self._waiting.num_places(each)))

    def _preempt(self, sequence: Sequence, batch: Batch) -> None:
        """Back to the front of waiting, to be computed again (or found in the prefix cache, if it is still there)."""
        batch.num_preemptions += 1
        self._running.remove(sequence)
        self._blocks.free(sequence)
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        sequence.status = SequenceStatus.WAITING
        self._waiting.send_back(sequence)

    def _admit_next(self) -> bool:
        """Let the next waiting sequence run, if it may."""
        sequence = self._waiting.head()
        if sequence is None or len(self._running) >= self._max_num_seqs or self._awaits_prefix(sequence):
            return False
        # One block stays for each running sequence, so that admission does not force a preemption a token later.
        if not self._blocks.admit(sequence, num_reserved_blocks=len(self._running)):
            self._lacks_blocks = sequence
            return False
        self._running.append(sequence)
        self._waiting.begin(sequence)
        sequence.status = SequenceStatus.RUNNING
        if sequence.num_preemptions == 0:
            sequence.num_prefix_hit_tokens = sequence.num_computed_tokens
            self._waiting.charge(sequence, sequence.num_uncomputed_tokens)
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
