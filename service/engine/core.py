"""The engine without a thread: requests in, one step at a time, token events out.

Every accepted request ends in exactly one terminal event per sequence, whatever happens to it: completion, abort, a
failure of its own, or a failure of the whole step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from service.engine.batch import ScheduledSequence
from service.engine.block_manager import BlockManager
from service.engine.config import EngineConfig
from service.engine.forecast import EngineRoom
from service.engine.isolation import Isolation, failure
from service.engine.runner_protocol import Runner, SequenceResult
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence
from service.engine.speculator import Speculator
from service.engine.step_record import StepRecord
from service.errors import ContextLengthError, InvalidRequestError
from service.types import FinishReason, GenerateRequest, StepStats, TokenEvent, TokenGrammar

logger = logging.getLogger(__name__)


class StepOutput(NamedTuple):
    events: list[TokenEvent]
    stats: StepStats


class EngineCore:
    """Continuous batching over one runner. Owned by one thread, but for `check`, which any thread may call."""

    def __init__(self, runner: Runner, config: EngineConfig, clock: Callable[[], float]) -> None:
        blocks = BlockManager(
            num_blocks=runner.num_blocks, block_size=runner.block_size, prefix_caching=config.prefix_caching
        )
        self.room = EngineRoom(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            num_kv_tokens=runner.num_blocks * runner.block_size,
        )
        self.max_model_len = min(runner.max_model_len, self.room.num_kv_tokens)
        self.vocab_size = runner.vocab_size
        self.config = config
        self._eos_token_ids = runner.eos_token_ids
        self._isolation = Isolation(runner)
        self._clock = clock
        self._blocks = blocks
        self._scheduler = Scheduler(
            blocks,
            Speculator(blocks, num_speculative_tokens=config.num_speculative_tokens, cost=config.step_cost),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self._random = Random()  # seeded by the operating system: for requests that bring no seed
        self._unfinished: dict[str, list[Sequence]] = {}
        self._record = StepRecord()

    @property
    def has_work(self) -> bool:
        """Whether a step would compute something or report an event."""
        return bool(self._unfinished) or bool(self._record.events)

    def check(self, request: GenerateRequest) -> None:
        """Raise ContextLengthError or InvalidRequestError unless `request` can be served to its end."""
        num_prompt, num_output = len(request.prompt_token_ids), request.sampling.max_tokens
        if num_prompt + num_output > self.max_model_len:
            raise ContextLengthError(
                f"This model's maximum context length is {self.max_model_len} tokens. However, you requested "
                f"{num_prompt + num_output} tokens ({num_prompt} in the messages, {num_output} in the completion). "
                "Please reduce the length of the messages or completion."
            )
        sampling = request.sampling
        for param, token_ids in (
            ("prompt", request.prompt_token_ids),
            ("logit_bias", [token_id for token_id, _ in sampling.logit_bias]),
            ("stop_token_ids", sampling.stop_token_ids),
        ):
            if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.vocab_size):
                raise InvalidRequestError(
                    f"{param} names a token id outside the vocabulary: ids are 0 to {self.vocab_size - 1}.", param=param
                )

    def add(self, request: GenerateRequest) -> None:
        """Accept `request`. Raises what `check` raises, and InvalidRequestError while its `request_id` is in use."""
        self.check(request)
        if request.request_id in self._unfinished:
            raise InvalidRequestError(f"request_id {request.request_id!r} is in use.", param="request_id")
        sequences = [
            Sequence.of(request, index, fresh_seed=self._random.getrandbits(63), eos_token_ids=self._eos_token_ids)
            for index in range(request.n)
        ]
        self._unfinished[request.request_id] = sequences
        for sequence in sequences:
            self._record.arrive(sequence)
            self._scheduler.add(sequence)
        if request.grammar is not None:
            self._constrain(sequences, request.grammar)

    def _constrain(self, sequences: list[Sequence], grammar: TokenGrammar) -> None:
        """Give each its matcher; all end at once where one cannot be made."""
        try:
            for sequence in sequences:
                sequence.matcher = grammar.matcher()
        except Exception as error:
            logger.exception("a grammar failed, of request %s", sequences[0].request_id)
            for sequence in tuple(sequences):
                self._end(sequence, FinishReason.ERROR, failure(error), self._clock())

    def abort(self, request_id: str) -> None:
        """End what is unfinished of a request, if anything; its terminal events come with the next step."""
        for sequence in tuple(self._unfinished.get(request_id, ())):
            self._end(sequence, FinishReason.ABORT, SequenceResult(), self._clock())

    def step(self) -> StepOutput:
        """One iteration: schedule, execute, commit. Raises EngineError where the runner fails whatever it is given."""
        started_at = self._clock()
        self._expire(started_at)
        batch = self._scheduler.schedule()
        self._record.schedule(batch, started_at)
        results = self._isolation.execute(batch)
        ended_at = self._clock()
        for scheduled, result in zip(batch.scheduled, results, strict=True):
            self._commit(scheduled, result, ended_at)
        return self._report(ended_at - started_at)

    def check_integrity(self) -> None:
        """Raise EngineError unless every KV block is accounted for."""
        self._scheduler.check_integrity()

    def _expire(self, now: float) -> None:
        """End what nobody waits for any more, begun or not."""
        for sequence in [sequence for sequences in self._unfinished.values() for sequence in sequences]:
            deadline_at = sequence.claim.deadline_at
            if deadline_at == math.inf and sequence.scheduled_at is None:
                deadline_at = sequence.arrival_at + self.config.queue_timeout_s
            if now > deadline_at:
                self._end(sequence, FinishReason.TIMEOUT, SequenceResult(), now)

    def _commit(self, scheduled: ScheduledSequence, result: SequenceResult, at: float) -> None:
        sequence, completes = scheduled.sequence, scheduled.completes
        if result.error is not None:
            self._end(sequence, FinishReason.ERROR, result, at)
            return
        self._scheduler.commit(scheduled, result)
        if scheduled.draft_token_ids:
            self._record.draft(len(scheduled.draft_token_ids), result.num_accepted)
        if not completes:
            return
        reason = sequence.finish_reason(self.max_model_len)
        if reason is None:
            self._record.event(sequence, result, at)
        else:
            self._end(sequence, reason, result, at)

    def _end(self, sequence: Sequence, reason: FinishReason, result: SequenceResult, at: float) -> None:
        # After a failure the K and V of the sequence may be wrong, even those of earlier steps: nobody may find them
        # again.
        self._scheduler.finish(sequence, forget=reason is FinishReason.ERROR)
        self._record.event(sequence, result, at, finish_reason=reason)
        unfinished = self._unfinished[sequence.request_id]
        unfinished.remove(sequence)
        if not unfinished:
            del self._unfinished[sequence.request_id]

    def _report(self, duration_s: float) -> StepOutput:
        record, self._record = self._record, StepRecord()
        stats = record.stats(
            duration_s=duration_s,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            num_prefill_left=self._scheduler.num_prefill_left,
            kv_usage=self._blocks.usage,
            adapters=self._scheduler.adapters,
        )
        return StepOutput(record.events, stats)
