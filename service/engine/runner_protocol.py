"""The seam between the engine and whatever computes: the model, a synthetic cost model, or a script in a test."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from service.engine.batch import Batch
from service.types import TokenLogprob


class SequenceResult(NamedTuple):
    """What one step brought one scheduled sequence.

    `token_ids` is the next token exactly where the sequence samples, and more where that and those after it are as its
    draft has them. `logprobs` has one entry for each, where it also asked for them, `prompt_logprobs` for each of its
    `prompt_logprob_positions`. With `error` set the rest is ignored: this sequence ends, the others go on.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    error: str | None = None

    @property
    def num_accepted(self) -> int:
        """Tokens of the draft that were right."""
        return max(0, len(self.token_ids) - 1)


class Runner(Protocol):
    """Computes batches over a KV cache of `num_blocks` blocks of `block_size` slots. Used by one thread."""

    @property
    def num_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def max_model_len(self) -> int:
        """Most tokens (prompt + output) of one sequence that the model can handle."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of logits per position."""
        ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    def execute(self, batch: Batch) -> list[SequenceResult]:
        """Compute a batch of at least one sequence; result i is of `batch.scheduled[i]`.

        A sequence that cannot go on is reported by its `error`. After an exception the sequences are tried in smaller
        batches, down to one: the same call again must do the same.
        """
        ...
