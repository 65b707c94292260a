"""What the end of a sequence without its tokens means to a client."""

from __future__ import annotations

from service.backend import Backend
from service.errors import DeadlineError, EngineError, OverloadedError, UnavailableError
from service.types import FinishReason, TokenEvent

LEAST_RETRY_S = 0.1


def raise_failure(event: TokenEvent, backend: Backend) -> None:
    """Where a sequence ended without its tokens: EngineError, UnavailableError, OverloadedError or DeadlineError."""
    if event.finish_reason is FinishReason.ERROR:
        raise EngineError(event.error or "The engine failed on this sequence.")
    if event.finish_reason is FinishReason.ABORT:
        raise UnavailableError("The server stopped before this request was finished: send it again.")
    if event.finish_reason is FinishReason.TIMEOUT:
        if event.timings is None or event.timings.scheduled_at is None:
            raise OverloadedError(
                "The server is overloaded: this request could not be begun in time. Please retry later.",
                retry_after_s=max(LEAST_RETRY_S, backend.health().wait_s),
            )
        raise DeadlineError("The answer was not complete within the time that the request gave it.")
