"""Who owns which block of the KV cache, and which blocks hold content worth finding again.

A block is in exactly one of three places:
- live: named by `num_references` ≥ 1 block tables;
- cached: named by none, but its content is known by digest, so that a later prompt can take it up; evicted oldest
  first;
- free: named by none, content worthless.

The digest of a full block covers its own tokens, and through the digest of the block before it all tokens before them
and the adapter they were computed with. Only blocks whose tokens are all computed get into the prefix cache, and a
block is written only before that: a block that can be shared is never written again, so there is nothing to copy.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from service.engine.sequence import Sequence
from service.errors import EngineError

DIGEST_BYTES = 16


class BlockManager:
    """Hands out `num_blocks` blocks of `block_size` positions. The only writer of `block_table` and `block_digests`."""

    def __init__(self, *, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        assert num_blocks > 0
        assert block_size > 0
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._num_references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._block_by_digest: dict[bytes, int] = {}
        self._digest_of: list[bytes | None] = [None] * num_blocks

    @property
    def num_available_blocks(self) -> int:
        """Blocks that can be handed out now: the free ones, and the cached ones by eviction."""
        return len(self._free) + len(self._cached)

    @property
    def usage(self) -> float:
        """Share of blocks that are live, 0-1. Cached blocks do not count: they are given up on demand."""
        return 1.0 - self.num_available_blocks / self.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def num_sharable_blocks(self, sequence: Sequence) -> int:
        """Leading blocks that `sequence` may take from the prefix cache: one token at least is left to compute."""
        if not self.prefix_caching or sequence.lacks_prompt_logprobs:
            return 0
        return (sequence.num_tokens - 1) // self.block_size

    def digest(self, sequence: Sequence, block: int) -> bytes:
        """Name by content of block number `block` of a sequence, which must be full of known tokens."""
        digests = sequence.block_digests
        for i in range(len(digests), block + 1):
            tokens = sequence.token_ids[i * self.block_size : (i + 1) * self.block_size]
            assert len(tokens) == self.block_size
            content = blake2b(digests[i - 1] if i else _root(sequence), digest_size=DIGEST_BYTES)
            content.update(array("q", tokens))
            digests.append(content.digest())
        return digests[block]

    def match_prefix(self, sequence: Sequence) -> list[int]:
        """Block ids that hold the K and V of the longest known prefix of `sequence`. Nothing is taken."""
        matched: list[int] = []
        for i in range(self.num_sharable_blocks(sequence)):
            block_id = self._block_by_digest.get(self.digest(sequence, i))
            if block_id is None:
                break
            matched.append(block_id)
        return matched

    def admit(self, sequence: Sequence, *, num_reserved_blocks: int) -> bool:
        """Give a waiting sequence blocks for all its known tokens, its prefix from the cache where it is there.

        All or nothing: False, and nothing changes, unless `num_reserved_blocks` stay available to others.
        Sets `num_computed_tokens` to what the prefix cache brought.
        """
        assert not sequence.block_table
        num_missing = self.blocks_for(sequence.num_tokens) + num_reserved_blocks - self.num_available_blocks
        if num_missing > self.num_sharable_blocks(sequence):
            return False  # whatever the cache holds: do not look
        matched = self.match_prefix(sequence)
        num_matched_live = sum(self._num_references[block_id] > 0 for block_id in matched)
        if num_missing > num_matched_live:
            return False
        for block_id in matched:
            self._cached.pop(block_id, None)
            self._num_references[block_id] += 1
        sequence.block_table.extend(matched)
        sequence.num_computed_tokens = len(matched) * self.block_size
        has_grown = self.grow(sequence)
        assert has_grown
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Extend the block table to all known tokens. All or nothing: False when there are too few blocks."""
        num_needed = self.blocks_for(sequence.num_tokens) - len(sequence.block_table)
        if num_needed > self.num_available_blocks:
            return False
        for _ in range(num_needed):
            sequence.block_table.append(self._take())
        return True

    def stretch(self, sequence: Sequence, num_tokens: int, *, num_reserved_blocks: int) -> int:
        """Extend the block table to so many tokens beyond the known ones, as far as `num_reserved_blocks` stay
        available; returns for how many of them there is room. `trim` takes it back."""
        table = sequence.block_table
        while (room := len(table) * self.block_size - sequence.num_tokens) < num_tokens:
            if self.num_available_blocks <= num_reserved_blocks:
                break
            table.append(self._take())
        return min(room, num_tokens)

    def trim(self, sequence: Sequence) -> None:
        """Take back the blocks beyond the known tokens: there is nothing of worth in them."""
        while len(sequence.block_table) > self.blocks_for(sequence.num_tokens):
            block_id = sequence.block_table.pop()
            self._num_references[block_id] = 0
            self._free.append(block_id)

    def cache_computed(self, sequence: Sequence, num_computed_before: int) -> None:
        """Make findable the blocks of `sequence` that got full since `num_computed_before` tokens were computed."""
        if not self.prefix_caching:
            return
        for i in range(num_computed_before // self.block_size, sequence.num_computed_tokens // self.block_size):
            block_id, digest = sequence.block_table[i], self.digest(sequence, i)
            if digest not in self._block_by_digest:  # else an equal block is known already, and one is enough
                self._block_by_digest[digest] = block_id
                self._digest_of[block_id] = digest

    def free(self, sequence: Sequence, *, forget: bool = False) -> None:
        """Take back the blocks of `sequence`. With `forget` their content is not found again (it may be wrong)."""
        for block_id in reversed(sequence.block_table):  # the tail is evicted before what it depends on
            if forget:
                self._forget(block_id)
            self._num_references[block_id] -= 1
            if self._num_references[block_id] == 0:
                if self._digest_of[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._cached[block_id] = None
        sequence.block_table.clear()

    def _take(self) -> int:
        if self._free:
            block_id = self._free.pop()
        else:
            block_id, _ = self._cached.popitem(last=False)
            self._forget(block_id)
        self._num_references[block_id] = 1
        return block_id

    def _forget(self, block_id: int) -> None:
        digest = self._digest_of[block_id]
        if digest is not None:
            del self._block_by_digest[digest]
            self._digest_of[block_id] = None

    def check_integrity(self, block_tables: Iterable[list[int]] = ()) -> None:
        """Raise EngineError unless the books balance, given the block tables of all sequences."""
        live = Counter(block_id for table in block_tables for block_id in table)
        places = Counter({block_id for block_id, count in enumerate(self._num_references) if count > 0})
        places.update(self._cached.keys())
        places.update(self._free)
        named = {block_id: digest for block_id, digest in enumerate(self._digest_of) if digest is not None}
        checks = {
            "every block is live, cached or free, and only one of them": dict(places)
            == dict.fromkeys(range(self.num_blocks), 1),
            "a block has as many references as tables name it": self._num_references
            == [live[block_id] for block_id in range(self.num_blocks)],
            "digests name blocks one to one": self._block_by_digest
            == {digest: block_id for block_id, digest in named.items()},
            "cached blocks have a digest and free ones have none": self._cached.keys() <= named.keys()
            and not named.keys() & set(self._free),
        }
        for rule, holds in checks.items():
            if not holds:
                raise EngineError(f"The KV cache's books do not balance: it is false that {rule}.")


def _root(sequence: Sequence) -> bytes:
    """What the digest of the first block begins with: K and V depend on the adapter too."""
    return b"" if sequence.adapter is None else sequence.adapter.key
