"""Requests with the instants they arrive at: what a trace, real or made, is to the simulator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import ConfigError

PREFIX_BLOCK_TOKENS = 512  # of one prefix id (the unit of Mooncake's hash_ids)


class SimulatedRequest(NamedTuple):
    """`arrival_at` in seconds since the trace began; `prefix_ids` name the leading blocks of PREFIX_BLOCK_TOKENS tokens
    by content, so that equal ids mean that the cache of one serves the other."""

    arrival_at: float
    num_prompt_tokens: int
    num_output_tokens: int
    prefix_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival, the first one at or after 0. Raises ConfigError when there are none."""

    name: str
    requests: tuple[SimulatedRequest, ...]

    def __post_init__(self) -> None:
        if not self.requests:
            raise ConfigError(f"The trace {self.name} has no requests.")
        assert self.requests[0].arrival_at >= 0.0
        assert all(a.arrival_at <= b.arrival_at for a, b in zip(self.requests, self.requests[1:], strict=False))

    @property
    def duration_s(self) -> float:
        return self.requests[-1].arrival_at

    @classmethod
    def of(cls, name: str, requests: Iterable[SimulatedRequest]) -> Workload:
        """In order, from 0. Requests without prompt or output tokens count as one token of each."""
        ordered = sorted(requests, key=lambda request: request.arrival_at)
        origin = ordered[0].arrival_at if ordered else 0.0
        return cls(
            name,
            tuple(
                SimulatedRequest(
                    r.arrival_at - origin, max(1, r.num_prompt_tokens), max(1, r.num_output_tokens), r.prefix_ids
                )
                for r in ordered
            ),
        )

    def times(self, factor: int) -> Workload:
        """Each request `factor` times, the copies spread evenly before the next arrival: the same shape, more of it."""
        copies = []
        for request, following in zip(self.requests, (*self.requests[1:], self.requests[-1]), strict=True):
            gap_s = (following.arrival_at - request.arrival_at) / factor
            copies += [request._replace(arrival_at=request.arrival_at + i * gap_s) for i in range(factor)]
        return Workload.of(f"{self.name} x {factor}", copies)
