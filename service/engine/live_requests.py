"""The books of the engine's loop: which accepted requests have not ended, who reads them, and whether there is room."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

from service.engine.drain_rate import DrainRate
from service.engine.stream import RequestStream
from service.errors import InvalidRequestError, OverloadedError
from service.types import GenerateRequest, StepStats, TokenEvent


@dataclass(slots=True)
class _Live:
    """A request with sequences to end. The reader owns its stream: who loses it aborts the request."""

    stream: weakref.ref[RequestStream]
    num_unfinished: int


class LiveRequests:
    """Accepts while fewer than `max_sequences` have not ended. Not locked: its owner sees to that."""

    def __init__(self, max_sequences: int, clock: Callable[[], float]) -> None:
        self._max_sequences = max_sequences
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._drain_rate = DrainRate()
        self._num_sequences = 0
        self.num_running = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_waiting(self) -> int:
        return max(0, self._num_sequences - self.num_running)

    def check(self, request: GenerateRequest) -> None:
        """Raise InvalidRequestError while the `request_id` is in use, and OverloadedError while there is no room."""
        if request.request_id in self._live:
            raise InvalidRequestError(f"request_id {request.request_id!r} is in use.", param="request_id")
        if self._num_sequences >= self._max_sequences:
            raise OverloadedError(
                f"The server is overloaded: {self.num_waiting} requests are waiting. Please retry later.",
                retry_after_s=self._drain_rate.time_for(self.num_waiting, self._clock()),
            )

    def add(self, request: GenerateRequest, stream: RequestStream) -> None:
        self._live[request.request_id] = _Live(weakref.ref(stream), request.n)
        self._num_sequences += request.n

    def settle(self, events: list[TokenEvent], stats: StepStats) -> list[tuple[RequestStream, TokenEvent]]:
        """Take what ended off the books; returns who is to be told of what."""
        self.num_running = stats.num_running
        self._drain_rate.note(len(stats.finished), self._clock())
        told: list[tuple[RequestStream, TokenEvent]] = []
        for event in events:
            live = self._live.get(event.request_id)
            if live is None:
                continue  # cleared while the step hung: its reader knows
            stream = live.stream()
            if stream is not None:
                told.append((stream, event))
            if event.finish_reason is not None:
                live.num_unfinished -= 1
                self._num_sequences -= 1
            if live.num_unfinished == 0:
                del self._live[event.request_id]
        return told

    def clear(self) -> list[RequestStream]:
        """Take everything off the books; returns who reads it."""
        streams = [live.stream() for live in self._live.values()]
        self._live.clear()
        self._num_sequences = self.num_running = 0
        return [stream for stream in streams if stream is not None]
