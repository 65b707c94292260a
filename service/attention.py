"""What crosses the wall between HTTP and model when somebody looks at attention. Standard library only.

H heads in each of L layers; a token is named by its position, from 0.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from service.errors import InvalidRequestError

MAX_TOKENS = 256
MAX_WEIGHTS = 262_144
MAX_LINKS = 100

Rows = list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """`num_kv_heads` divides `num_heads`; with `sliding_window` W a token sees itself and the W - 1 before it."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    sliding_window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionRequest:
    """What to show of `token_ids`: always a summary of every head, and more on demand.

    All weights of `layers` × `heads`; and for the token at `position`, if any, the `num_links` strongest links of all
    heads to earlier tokens, and with `all_heads` its weights in every head. The first token is never the end of a
    link: heads that look for nothing rest on it, which `HeadSummary.first` tells. Raises InvalidRequestError.
    """

    shape: AttentionShape
    token_ids: tuple[int, ...]
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    position: int | None = None
    num_links: int = 10
    all_heads: bool = False

    def __post_init__(self) -> None:
        shape, num_tokens = self.shape, len(self.token_ids)
        if not 1 <= num_tokens <= MAX_TOKENS:
            raise InvalidRequestError(
                f"Attention is shown for 1 to {MAX_TOKENS} tokens, but these are {num_tokens}: send a shorter text.",
                param="prompt",
            )
        for param, numbers, end in (("layers", self.layers, shape.num_layers), ("heads", self.heads, shape.num_heads)):
            if any(not 0 <= number < end for number in numbers):
                raise InvalidRequestError(f"{param} must be numbers from 0 to {end - 1} in this model.", param=param)
        if self.position is not None and not 0 <= self.position < num_tokens:
            raise InvalidRequestError(f"position must be from 0 to {num_tokens - 1} here.", param="position")
        if not 0 <= self.num_links <= MAX_LINKS:
            raise InvalidRequestError(f"num_links must be from 0 to {MAX_LINKS}.", param="num_links")
        if self.num_weights > MAX_WEIGHTS:
            raise InvalidRequestError(
                f"These are {self.num_weights} weights; at most {MAX_WEIGHTS} are given at once: ask for fewer layers"
                " or heads, or for a shorter text.",
                param="layers",
            )

    @property
    def num_weights(self) -> int:
        """How many numbers the answer has, apart from the summaries."""
        num_tokens = len(self.token_ids)
        whole = len(self.layers) * len(self.heads) * num_tokens * (num_tokens + 1) // 2
        row = 0 if self.position is None or not self.all_heads else self.position + 1
        return whole + self.shape.num_layers * self.shape.num_heads * row


class HeadSummary(NamedTuple):
    """How one head looks back, averaged over the tokens for which the question makes sense; None if there is none.

    `entropy` in bits: 0 looks at one token, log2(n) at n alike. `distance`: tokens between a token and what it looks
    at, by weight. `previous`, `first`: weight on the token before, and on the first token, from those after it.
    `induction`: weight on what followed the earlier occurrences of the same token
    (https://arxiv.org/abs/2209.11895).
    """

    entropy: float
    distance: float
    previous: float | None
    first: float | None
    induction: float | None


class Link(NamedTuple):
    """How much of its attention a head of a layer gives from the token in question to the one at `position`."""

    layer: int
    head: int
    position: int
    weight: float


class HeadWeights(NamedTuple):
    """Row i: the weights of token i on tokens 0 … i, which add up to 1."""

    layer: int
    head: int
    rows: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionMap:
    """`summaries` [L][H]; `weights` by layer, then as asked; `links` strongest first; `row` [L][H][position + 1]."""

    summaries: list[list[HeadSummary]]
    weights: list[HeadWeights]
    links: list[Link]
    row: list[Rows]


class AttentionSource(Protocol):
    """A model whose attention can be looked at."""

    @property
    def shape(self) -> AttentionShape: ...

    def look(self, request: AttentionRequest) -> Awaitable[AttentionMap]:
        """To be called on a running event loop; cancelling it ends the work.

        Raises OverloadedError, UnavailableError or EngineError.
        """
        ...
