"""The one door between HTTP and whatever generates tokens: the engine of this process, or a fake in a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from service.types import Claim, GenerateRequest, TokenEvent


class HealthState(StrEnum):
    LOADING = "loading"  # nothing is served yet
    READY = "ready"
    OVERLOADED = "overloaded"  # serving, and refusing what would not be begun in time: new requests may come
    DRAINING = "draining"  # finishing what it has: new requests should go elsewhere
    DEAD = "dead"  # the engine has failed, or its heartbeat has stopped: busy is alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`wait_s`: until a request that comes now would be begun."""

    state: HealthState
    reason: str
    num_waiting: int = 0
    num_running: int = 0
    wait_s: float = 0.0
    heartbeat_age_s: float = 0.0

    @property
    def alive(self) -> bool:
        return self.state is not HealthState.DEAD

    @property
    def ready(self) -> bool:
        return self.state in (HealthState.READY, HealthState.OVERLOADED)


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
