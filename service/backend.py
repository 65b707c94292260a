"""The one door between HTTP and whatever generates tokens: the engine of this process, or a fake in a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from service.types import GenerateRequest, TokenEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`alive` is False when the engine's heartbeat has stopped (busy is alive).

    `ready` is False while loading or draining.
    """

    alive: bool
    ready: bool
    reason: str
    num_waiting: int = 0
    num_running: int = 0
    heartbeat_age_s: float = 0.0


class TokenStream(Protocol):
    """The events of one admitted request; any async generator of them is one."""

    def __aiter__(self) -> AsyncIterator[TokenEvent]: ...

    async def __anext__(self) -> TokenEvent: ...

    async def aclose(self) -> None:
        """Abort what is unfinished, also where nothing has been read yet; harmless after the end, and twice."""
        ...


class Backend(Protocol):
    """Generates tokens for requests."""

    @property
    def max_model_len(self) -> int:
        """Most tokens (prompt + output) that one sequence may have here."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 ≤ id < vocab_size."""
        ...

    def generate(self, request: GenerateRequest) -> TokenStream:
        """Admit `request` now and stream its events; ends after one terminal event per sequence.

        Admission is synchronous: raises ContextLengthError, InvalidRequestError, OverloadedError or UnavailableError
        before a stream is returned. Closing it early aborts what is unfinished within a step.
        """
        ...

    def health(self) -> Health:
        """Never blocks."""
        ...


class FleetView(Protocol):
    """What can be asked about all replicas together; answers are JSON.

    Raises UnavailableError while the autoscaler does not answer.
    """

    async def status(self) -> Mapping[str, Any]: ...

    async def decisions(self, since: int, limit: int, *, only_changes: bool) -> Sequence[Mapping[str, Any]]:
        """The latest `limit` of those numbered above `since`, oldest first."""
        ...
