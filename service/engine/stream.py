"""The asyncio side of one request: what its reader has not read yet, and exactly one end per sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import chain

from service.types import FinishReason, GenerateRequest, TokenEvent


class RequestStream:
    """Implements `TokenStream`. Lives on the event loop `loop`; no other thread calls it.

    A reader that falls behind gets the events of a sequence merged into one: nothing is dropped, and what is held is
    bounded by `max_tokens`. Closing, cancelling a read or losing the last reference aborts what is unfinished.
    """

    def __init__(self, request: GenerateRequest, loop: asyncio.AbstractEventLoop, abort: Callable[[str], None]) -> None:
        self.loop = loop
        self.request_id = request.request_id
        self._abort = abort
        self._unfinished = set(range(request.n))
        self._unread: dict[int, list[TokenEvent]] = {}
        self._changed = asyncio.Event()

    def push(self, event: TokenEvent) -> None:
        """Take an event in; one for a sequence that has ended is ignored."""
        if event.index not in self._unfinished:
            return
        if event.finish_reason is not None:
            self._unfinished.remove(event.index)
        self._unread.setdefault(event.index, []).append(event)
        self._changed.set()

    def end(self, reason: FinishReason, error: str) -> None:
        """End every unfinished sequence for `reason`; `error` says more."""
        for index in sorted(self._unfinished):
            self.push(TokenEvent(request_id=self.request_id, index=index, finish_reason=reason, error=error))

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> TokenEvent:
        while not self._unread:
            if not self._unfinished:
                raise StopAsyncIteration
            self._changed.clear()
            try:
                await self._changed.wait()
            except asyncio.CancelledError:
                self._close()
                raise
        return merge(self._unread.pop(next(iter(self._unread))))

    async def aclose(self) -> None:
        self._unread.clear()
        self._close()

    def _close(self) -> None:
        if self._unfinished:
            self._unfinished.clear()
            self._abort(self.request_id)
            self._changed.set()

    def __del__(self) -> None:
        if self._unfinished:
            self._abort(self.request_id)


def push_all(pairs: list[tuple[RequestStream, TokenEvent]]) -> None:
    """Push each event to its stream: what one step brought all streams of an event loop, in one callback."""
    for stream, event in pairs:
        stream.push(event)


def merge(events: list[TokenEvent]) -> TokenEvent:
    """One event that says what successive events of one sequence say."""
    first, last = events[0], events[-1]
    if first is last:
        return first
    return TokenEvent(
        request_id=first.request_id,
        index=first.index,
        token_ids=tuple(chain.from_iterable(event.token_ids for event in events)),
        logprobs=tuple(chain.from_iterable(event.logprobs for event in events)),
        prompt_logprobs=first.prompt_logprobs,
        num_prefix_hit_tokens=last.num_prefix_hit_tokens,
        finish_reason=last.finish_reason,
        error=last.error,
        timings=last.timings or first.timings,
    )
