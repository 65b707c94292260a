"""The one door between HTTP and whatever generates tokens: the engine of this process, or a fake in a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from service.health import Health
from service.types import Claim, GenerateRequest, TokenEvent


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

    def check_room(self, claim: Claim) -> None:
        """Raise OverloadedError or UnavailableError where no request of `claim` would be admitted now, whatever it is.

        Costs microseconds, so that who is refused is refused before anything is read or computed.
        """
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
