"""Guesses of how a sequence goes on: as it did after the last occurrence of its latest tokens.

The idea is known as prompt lookup: https://github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

LENGTHS = (4, 3, 2)
"""Of the n-grams that are looked up, in that order."""

FIRST_CHANCE = 0.5
MOST_INDEXED = 4096  # of the tokens that are there at first: indexing them all would hold up a step
_LEARNING = 1 / 8  # per guess that was judged


class Drafter:
    """Of one sequence. Time and memory are constant per token: an entry for each length.

    `chance` is that of a guess to be right where all before it were, as the last ones have taught.
    """

    def __init__(self) -> None:
        self.chance = FIRST_CHANCE
        self._after: dict[tuple[int, ...], int] = {}  # n-gram → where the token after its last occurrence is
        self._num_indexed = LENGTHS[-1]
        self._kept: tuple[int, int] | None = None  # a guess that was not worth it: its position and token

    def propose(self, token_ids: list[int], *, limit: int, least_chance: float) -> list[int]:
        """The tokens that may follow `token_ids`, which are those of the call before and at least one more.

        At most `limit`, and none whose chance to be reached and right is below `least_chance`. Where that leaves
        nothing, the first guess is judged all the same, by the token that comes: that costs nothing.
        """
        self._index(token_ids)
        if self._kept is not None:
            position, token_id = self._kept
            self.learn(1, int(token_ids[position] == token_id))
            self._kept = None
        found = (self._after.get(tuple(token_ids[-length:])) for length in LENGTHS)
        start = next((at for at in found if at is not None), None)
        if start is None:
            return []
        count = self._count(limit, least_chance)
        if count == 0:
            self._kept = len(token_ids), token_ids[start]
        period = len(token_ids) - start  # what follows the end of the known tokens is the draft itself
        return [token_ids[start + i % period] for i in range(count)]

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Take in what became of a draft: of its tokens, those behind the first wrong one were not judged."""
        self.chance = 1.0 - (1.0 - self.chance) * (1.0 - _LEARNING) ** num_accepted
        if num_accepted < num_drafted:
            self.chance *= 1.0 - _LEARNING

    def _index(self, token_ids: list[int]) -> None:
        if not self._after:
            self._num_indexed = max(self._num_indexed, len(token_ids) - MOST_INDEXED)
        for end in range(self._num_indexed, len(token_ids)):
            for length in LENGTHS:
                if length <= end:
                    self._after[tuple(token_ids[end - length : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids))

    def _count(self, limit: int, least_chance: float) -> int:
        count, chance = 0, self.chance
        while count < limit and chance >= least_chance:
            count += 1
            chance *= self.chance
        return count
