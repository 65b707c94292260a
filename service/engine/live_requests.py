"""The books of the engine's loop: which accepted requests have not ended, who reads them, and what they need."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from service.engine.admission import Account, Admission
from service.engine.stream import RequestStream
from service.errors import InvalidRequestError
from service.types import GenerateRequest, StepStats, TokenEvent


@dataclass(slots=True)
class _Live:
    """A request with sequences to end. The reader owns its stream: who loses it aborts the request.

    `num_prompt_tokens` are still to be computed; each sequence is expected to have `num_output_tokens`.
    """

    stream: weakref.ref[RequestStream]
    account: Account
    unfinished: set[int]
    waiting: set[int]
    num_prompt_tokens: float
    num_output_tokens: float

    def begin(self, index: int) -> None:
        """Sequence `index` is not waiting any more; the first of them computes the prompt for all."""
        self.waiting.remove(index)
        self.account.num_waiting -= 1
        self.account.num_begun += 1
        self.account.num_prompt_tokens -= self.num_prompt_tokens
        self.account.num_output_tokens -= self.num_output_tokens
        self.num_prompt_tokens = 0.0

    def end(self, index: int) -> None:
        self.unfinished.remove(index)
        self.account.num_begun -= 1


class LiveRequests:
    """Not locked: its owner sees to that."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._live: dict[str, _Live] = {}
        self.num_running = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_waiting(self) -> int:
        return max(0, sum(len(live.unfinished) for live in self._live.values()) - self.num_running)

    def check(self, request: GenerateRequest) -> None:
        """Raise InvalidRequestError while the `request_id` is in use, and OverloadedError unless it is admitted."""
        if request.request_id in self._live:
            raise InvalidRequestError(f"request_id {request.request_id!r} is in use.", param="request_id")
        self.admission.check(request.claim, len(request.prompt_token_ids))

    def add(self, request: GenerateRequest, stream: RequestStream) -> None:
        account, forecast = self.admission.account_of(request.claim), self.admission.forecast
        live = _Live(
            stream=weakref.ref(stream),
            account=account,
            unfinished=set(range(request.n)),
            waiting=set(range(request.n)),
            num_prompt_tokens=forecast.uncached(len(request.prompt_token_ids)),
            num_output_tokens=forecast.output_tokens(request.sampling.max_tokens),
        )
        self._live[request.request_id] = live
        account.num_waiting += request.n
        account.num_prompt_tokens += live.num_prompt_tokens
        account.num_output_tokens += request.n * live.num_output_tokens

    def settle(self, events: list[TokenEvent], stats: StepStats) -> list[tuple[RequestStream, TokenEvent]]:
        """Take what ended off the books; returns who is to be told of what."""
        self.num_running = stats.num_running
        told: list[tuple[RequestStream, TokenEvent]] = []
        num_begun_prompt_tokens = 0
        for event in events:
            live = self._live.get(event.request_id)
            if live is None:
                continue  # cleared while the step hung: its reader knows
            stream = live.stream()
            if stream is not None:
                told.append((stream, event))
            if event.index in live.waiting:
                live.begin(event.index)
                timings = event.timings
                if timings is not None and timings.scheduled_at is not None:
                    num_begun_prompt_tokens += timings.num_prompt_tokens - timings.num_prefix_hit_tokens
            if event.finish_reason is not None:
                live.end(event.index)
            if not live.unfinished:
                del self._live[event.request_id]
        self.admission.settle(stats, num_begun_prompt_tokens)
        return told

    def clear(self) -> list[RequestStream]:
        """Take everything off the books; returns who reads it."""
        streams = [live.stream() for live in self._live.values()]
        self._live.clear()
        self.admission.clear()
        self.num_running = 0
        return [stream for stream in streams if stream is not None]
