"""Drafts held against what the sampler says: output is what it would have been without them, to the last bit.

Each position is sampled as it would be in a step of its own: with the tokens before it, its own random number, its
penalties, its grammar. The next one counts where the draft had guessed just that token.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import NamedTuple

from service.engine.batch import ScheduledSequence
from service.engine.runner_protocol import SequenceResult
from service.engine.sequence import Sequence


class Position(NamedTuple):
    """Where to sample: in number `which` of the scheduled, after `num_accepted` tokens of its draft.

    `sequence` is as it would be there: a copy, unless nothing of a draft is accepted yet.
    """

    which: int
    num_accepted: int
    sequence: Sequence


def verify(
    scheduled: Rows[ScheduledSequence], sample: Callable[[Rows[Position]], list[SequenceResult]]
) -> list[SequenceResult]:
    """What each gets that samples: a token, and one more for each token of its draft that came; the others get nothing.

    `sample` gives the next token at some positions; it is never asked for one whose draft has not come true before.
    """
    results = [SequenceResult()] * len(scheduled)
    positions = [Position(i, 0, each.sequence) for i, each in enumerate(scheduled) if each.samples]
    while positions:
        following: list[Position] = []
        for (which, num_accepted, sequence), result in zip(positions, sample(positions), strict=True):
            before, draft = results[which], scheduled[which].draft_token_ids
            if num_accepted == 0:
                results[which] = result
            elif result.error is None:  # else the next step meets it, and this one ends before
                results[which] = SequenceResult(before.token_ids + result.token_ids, before.logprobs + result.logprobs)
            if result.token_ids and result.token_ids == draft[num_accepted : num_accepted + 1]:
                following.append(Position(which, num_accepted + 1, sequence.continued(result.token_ids)))
        positions = following
    return results
