"""Grammars in a batch: the logits of the sequences that have one, with all that may not come next at minus infinity."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch
from torch import Tensor
from torch.nn.functional import embedding

from service.engine.sequence import Sequence
from service.errors import GrammarError

_BITS = 8


def constrain(logits: Tensor, sequences: Rows[Sequence]) -> dict[int, Tensor | GrammarError]:
    """Of each row with a grammar its constrained copy [V], or why its sequence cannot go on; nothing of other rows.

    `logits` is [R, V], row i of `sequences[i]`. On a GPU the masks are made while it still computes the logits.
    """
    constrained: dict[int, Tensor | GrammarError] = {}
    rows: list[int] = []
    masks = bytearray()
    width = -(-logits.shape[1] // _BITS)
    for i, sequence in enumerate(sequences):
        if sequence.matcher is None:
            continue
        try:
            masks += sequence.matcher.mask(sequence.output_token_ids)[:width].ljust(width, b"\0")
        except GrammarError as error:
            constrained[i] = error
        else:
            rows.append(i)
    if rows:
        for i, summands in zip(rows, _summands(masks, logits, len(rows)), strict=True):
            constrained[i] = summands.add_(logits[i])
    return constrained


def _summands(masks: bytearray, logits: Tensor, num_rows: int) -> Tensor:
    """Zero where a bit is set, minus infinity elsewhere: [num_rows, V]."""
    # A table of eight for each byte is several times as fast as taking the bits apart.
    device = logits.device
    is_set = torch.arange(256, device=device)[:, None] >> torch.arange(_BITS, device=device) & 1
    table = torch.where(is_set == 1, 0.0, -math.inf).to(logits.dtype)
    packed = torch.frombuffer(masks, dtype=torch.uint8).to(device).int()
    return embedding(packed, table).view(num_rows, -1)[:, : logits.shape[1]]
