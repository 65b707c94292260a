"""What one step brought, gathered while it goes: the events for the clients and the figures for the metrics.

The one place that stamps instants on sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from service.engine.batch import Batch
from service.engine.runner_protocol import SequenceResult
from service.engine.sequence import Sequence
from service.types import FinishReason, SequenceTimings, StepStats, TokenEvent, TokenLogprob


@dataclass(slots=True)
class StepRecord:
    """Filled by one step and the aborts before it, then read once."""

    events: list[TokenEvent] = field(default_factory=list)
    _finished: list[tuple[FinishReason, SequenceTimings]] = field(default_factory=list)
    _drafts: list[tuple[int, int]] = field(default_factory=list)
    _ttft_s: list[float] = field(default_factory=list)
    _itl_s: list[float] = field(default_factory=list)
    _num_arrived: int = 0
    _num_arrived_prompt_tokens: int = 0
    _num_scheduled: int = 0
    _num_prefill_tokens: int = 0
    _num_context_tokens: int = 0
    _num_prompt_tokens: int = 0
    _num_output_tokens: int = 0
    _num_preemptions: int = 0
    _num_prefix_queried_tokens: int = 0
    _num_prefix_hit_tokens: int = 0

    def arrive(self, sequence: Sequence) -> None:
        """Take note of a sequence that was accepted."""
        self._num_arrived += 1
        self._num_arrived_prompt_tokens += sequence.num_prompt_tokens

    def schedule(self, batch: Batch, at: float) -> None:
        """Take note of what the step is about to compute."""
        self._num_scheduled += len(batch.scheduled)
        self._num_prefill_tokens += batch.num_new_tokens - batch.num_draft_tokens - len(batch.scheduled)
        self._num_context_tokens += sum(scheduled.end for scheduled in batch.scheduled)
        self._num_preemptions += batch.num_preemptions
        for sequence in batch.admitted:
            if sequence.num_preemptions == 0:
                sequence.scheduled_at = at
                sequence.num_reported_prompt_tokens = sequence.num_prefix_hit_tokens
                self._num_prefix_queried_tokens += sequence.num_prompt_tokens
                self._num_prefix_hit_tokens += sequence.num_prefix_hit_tokens
        for scheduled in batch.scheduled:
            sequence = scheduled.sequence
            num_new_tokens = min(scheduled.end, sequence.num_prompt_tokens) - sequence.num_reported_prompt_tokens
            if num_new_tokens > 0:
                sequence.num_reported_prompt_tokens += num_new_tokens
                self._num_prompt_tokens += num_new_tokens

    def draft(self, num_drafted: int, num_accepted: int) -> None:
        """Take note of what became of a draft."""
        self._drafts.append((num_drafted, num_accepted))

    def event(
        self, sequence: Sequence, result: SequenceResult, at: float, *, finish_reason: FinishReason | None = None
    ) -> None:
        """Report what `result` brought `sequence` at instant `at`, and its end if it has a `finish_reason`."""
        is_first = sequence.last_token_at is None
        if result.token_ids:
            self._num_output_tokens += len(result.token_ids)
            self._time_tokens(sequence, at)
        timings = sequence.timings() if is_first or finish_reason is not None else None
        if finish_reason is not None and timings is not None:
            self._finished.append((finish_reason, timings))
        self.events.append(
            TokenEvent(
                request_id=sequence.request_id,
                index=sequence.index,
                token_ids=result.token_ids,
                logprobs=result.logprobs,
                prompt_logprobs=_due_prompt_logprobs(sequence, finish_reason),
                num_prefix_hit_tokens=sequence.num_prefix_hit_tokens,
                finish_reason=finish_reason,
                error=result.error,
                timings=timings,
            )
        )

    def stats(
        self,
        *,
        duration_s: float,
        num_running: int,
        num_waiting: int,
        num_prefill_left: int,
        kv_usage: float,
        adapters: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset()),
    ) -> StepStats:
        return StepStats(
            duration_s=duration_s,
            num_running=num_running,
            num_waiting=num_waiting,
            num_prefill_left=num_prefill_left,
            kv_usage=kv_usage,
            num_arrived=self._num_arrived,
            num_arrived_prompt_tokens=self._num_arrived_prompt_tokens,
            num_scheduled=self._num_scheduled,
            num_prefill_tokens=self._num_prefill_tokens,
            num_context_tokens=self._num_context_tokens,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            num_preemptions=self._num_preemptions,
            num_prefix_queried_tokens=self._num_prefix_queried_tokens,
            num_prefix_hit_tokens=self._num_prefix_hit_tokens,
            ttft_s=tuple(self._ttft_s),
            itl_s=tuple(self._itl_s),
            finished=tuple(self._finished),
            drafts=tuple(self._drafts),
            running_adapters=adapters[0],
            waiting_adapters=adapters[1],
        )

    def _time_tokens(self, sequence: Sequence, at: float) -> None:
        if sequence.last_token_at is None:
            sequence.first_token_at = at
            self._ttft_s.append(at - sequence.arrival_at)
        else:
            self._itl_s.append(at - sequence.last_token_at)
        sequence.last_token_at = at


def _due_prompt_logprobs(
    sequence: Sequence, finish_reason: FinishReason | None
) -> tuple[TokenLogprob | None, ...] | None:
    """They come once, with the first event that follows from computing. Nothing precedes the first token."""
    is_cut_short = finish_reason in (FinishReason.ABORT, FinishReason.ERROR, FinishReason.TIMEOUT)
    if not sequence.wants_prompt_logprobs or is_cut_short or sequence.num_output_tokens > 1:
        return None
    return (None, *sequence.prompt_logprobs)
