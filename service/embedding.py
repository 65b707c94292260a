"""What crosses the wall between HTTP and model when texts become vectors. Standard library only."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Literal, Protocol

from service.errors import InvalidRequestError

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 2048
MAX_TOTAL_TOKENS = 65_536

Pooling = Literal["mean", "last", "first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingShape:
    """What vectors a model gives. `pooling` is what it was made for, or what is usual where it was made for none.

    A `decoder` was trained to go on with a text, not to compare texts: its last hidden states make vectors that are
    better than nothing; an `encoder`'s are what it is for.
    """

    kind: Literal["decoder", "encoder"]
    dimensions: int
    pooling: Pooling
    max_tokens: int
    vocab_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """The token ids of each input, and how its tokens' hidden states become one vector. Raises InvalidRequestError."""

    shape: EmbeddingShape
    inputs: tuple[tuple[int, ...], ...]
    pooling: Pooling

    def __post_init__(self) -> None:
        if len(self.inputs) > MAX_INPUTS:
            raise InvalidRequestError(f"At most {MAX_INPUTS} inputs are taken at once.", param="input")
        for index, token_ids in enumerate(self.inputs):
            if not 1 <= len(token_ids) <= self.shape.max_tokens:
                raise InvalidRequestError(
                    f"An input must have 1 to {self.shape.max_tokens} tokens, but number {index} has {len(token_ids)}.",
                    param="input",
                )
            if not (min(token_ids) >= 0 and max(token_ids) < self.shape.vocab_size):
                raise InvalidRequestError(
                    f"input names a token id outside the vocabulary: ids are 0 to {self.shape.vocab_size - 1}.",
                    param="input",
                )
        if self.pooling == "first" and self.shape.kind == "decoder":
            raise InvalidRequestError(
                "The first token of this model has seen no other: pool mean or last.", param="pooling"
            )
        if self.num_tokens > MAX_TOTAL_TOKENS:
            raise InvalidRequestError(
                f"The inputs have {self.num_tokens} tokens together; at most {MAX_TOTAL_TOKENS} are taken at once.",
                param="input",
            )

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.inputs))


class EmbeddingSource(Protocol):
    """A model that makes vectors of texts."""

    @property
    def shape(self) -> EmbeddingShape: ...

    def embed(self, request: EmbeddingRequest) -> Awaitable[list[array[float]]]:
        """A float32 vector of length 1 for each input. To be called on a running event loop; cancelling it ends the
        work. Raises OverloadedError, UnavailableError or EngineError.
        """
        ...
