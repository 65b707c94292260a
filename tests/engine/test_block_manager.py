"""Paged blocks: ownership, the prefix cache, eviction, and books that balance."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from service.engine.block_manager import BlockManager
from service.engine.sequence import Sequence
from service.errors import EngineError
from service.types import Adapter
from tests.engine.fakes import NamedAdapter, request
from tests.engine.strategies import token_ids

ADAPTERS = {
    "none": None,
    "sql": NamedAdapter("sql", b"0" * 16),
    "chat": NamedAdapter("chat", b"1" * 16),
    "sql again": NamedAdapter("sql again", b"0" * 16),
}


def sequence(*tokens: int, prompt_logprobs: int | None = None, adapter: Adapter | None = None) -> Sequence:
    """A sequence that knows `tokens` as its prompt."""
    asked = replace(request(*tokens, prompt_logprobs=prompt_logprobs), adapter=adapter)
    return Sequence.of(asked, 0, fresh_seed=0, eos_token_ids=frozenset())


def compute(blocks: BlockManager, seq: Sequence, num_tokens: int | None = None) -> None:
    """Mark tokens of `seq` as computed: all but the last, or up to `num_tokens`."""
    before = seq.num_computed_tokens
    seq.num_computed_tokens = seq.num_tokens if num_tokens is None else num_tokens
    blocks.cache_computed(seq, before)


def admitted(blocks: BlockManager, *tokens: int) -> Sequence:
    """A sequence that owns its blocks and is computed."""
    seq = sequence(*tokens)
    assert blocks.admit(seq, num_reserved_blocks=0)
    compute(blocks, seq)
    return seq


class TestPrefixCache:
    def test_a_computed_prefix_is_shared(self) -> None:
        """A second sequence takes the full blocks of an equal prefix and gets only the rest anew."""
        blocks = BlockManager(num_blocks=8, block_size=2)
        first = admitted(blocks, 1, 2, 3, 4, 5)
        second = sequence(1, 2, 3, 4, 6)

        assert blocks.admit(second, num_reserved_blocks=0)

        assert second.block_table[:2] == first.block_table[:2]
        assert second.block_table[2] != first.block_table[2]
        assert second.num_computed_tokens == 4
        assert blocks.usage == 4 / 8

    @pytest.mark.parametrize(("num_tokens", "num_hit"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (6, 2)])
    def test_one_token_is_always_left_to_compute(self, num_tokens: int, num_hit: int) -> None:
        """Even a sequence that is known as a whole computes its last token, for its logits."""
        blocks = BlockManager(num_blocks=8, block_size=2)
        prompt = tuple(range(num_tokens))
        admitted(blocks, *prompt)

        assert len(blocks.match_prefix(sequence(*prompt))) == num_hit

    def test_a_block_is_known_by_all_tokens_before_it(self) -> None:
        """Equal tokens after different ones are different content."""
        blocks = BlockManager(num_blocks=8, block_size=2)
        admitted(blocks, 1, 2, 3, 4, 5)

        assert blocks.match_prefix(sequence(9, 2, 3, 4, 5)) == []

    def test_tokens_that_are_not_computed_are_not_found(self) -> None:
        """Owning a block is not enough: its K and V must be there."""
        blocks = BlockManager(num_blocks=8, block_size=2)
        first = sequence(1, 2, 3, 4, 5)
        blocks.admit(first, num_reserved_blocks=0)
        compute(blocks, first, 3)

        assert blocks.match_prefix(sequence(1, 2, 3, 4, 5)) == first.block_table[:1]

    def test_adapters_do_not_share(self) -> None:
        """K and V of equal tokens differ between adapters, and from the model's own; equal content may be shared."""
        blocks = BlockManager(num_blocks=16, block_size=2)
        owners = {name: sequence(1, 2, 3, 4, 5, adapter=adapter) for name, adapter in ADAPTERS.items()}
        for seq in owners.values():
            assert blocks.admit(seq, num_reserved_blocks=0)
            compute(blocks, seq)

        for name, adapter in ADAPTERS.items():
            same = "sql" if name == "sql again" else name
            assert blocks.match_prefix(sequence(1, 2, 3, 4, 6, adapter=adapter)) == owners[same].block_table[:2]
        blocks.check_integrity(seq.block_table for seq in owners.values())

    def test_off_means_off(self) -> None:
        """Without prefix caching nothing is found and nothing is kept."""
        blocks = BlockManager(num_blocks=8, block_size=2, prefix_caching=False)
        blocks.free(admitted(blocks, 1, 2, 3, 4, 5))

        assert blocks.match_prefix(sequence(1, 2, 3, 4, 5)) == []

    def test_a_sequence_that_lacks_prompt_logprobs_computes_its_prompt(self) -> None:
        """What is found in the cache has no logits."""
        blocks = BlockManager(num_blocks=8, block_size=2)
        admitted(blocks, 1, 2, 3, 4, 5)

        assert blocks.match_prefix(sequence(1, 2, 3, 4, 5, prompt_logprobs=0)) == []

    def test_forgotten_content_is_not_found(self) -> None:
        """What may be wrong is not handed on, not even by a sequence that still shares it."""
        blocks = BlockManager(num_blocks=8, block_size=2)
        first, second = admitted(blocks, 1, 2, 3), admitted(blocks, 1, 2, 3)
        blocks.free(first, forget=True)
        blocks.free(second)

        assert blocks.match_prefix(sequence(1, 2, 3)) == []
        assert blocks.usage == 0
        blocks.check_integrity()


class TestEviction:
    def test_the_least_recently_used_goes_first_and_tails_before_heads(self) -> None:
        """Of two cached sequences the one freed first loses its blocks first, from its end."""
        blocks = BlockManager(num_blocks=6, block_size=1)
        old, new = admitted(blocks, 1, 2, 3), admitted(blocks, 4, 5, 6)
        blocks.free(old)
        blocks.free(new)

        admitted(blocks, 7, 8)

        assert len(blocks.match_prefix(sequence(1, 2, 3, 0))) == 1
        assert len(blocks.match_prefix(sequence(4, 5, 6, 0))) == 3

    def test_free_blocks_are_used_before_cached_ones(self) -> None:
        """Nothing is evicted while there is a block that nobody wants."""
        blocks = BlockManager(num_blocks=4, block_size=1)
        blocks.free(admitted(blocks, 1, 2))

        admitted(blocks, 7, 8)

        assert len(blocks.match_prefix(sequence(1, 2, 0))) == 2

    def test_cached_blocks_are_not_in_use(self) -> None:
        """After everything is freed the usage is 0 and all blocks are available, though the content is kept."""
        blocks = BlockManager(num_blocks=4, block_size=2)
        blocks.free(admitted(blocks, 1, 2, 3, 4, 5))

        assert blocks.usage == 0
        assert blocks.num_available_blocks == 4
        assert len(blocks.match_prefix(sequence(1, 2, 3, 4, 5))) == 2


class TestAdmission:
    @pytest.mark.parametrize(("num_reserved", "expected"), [(0, True), (1, True), (2, False)])
    def test_reserved_blocks_stay(self, num_reserved: int, expected: bool) -> None:
        """A sequence of 3 blocks fits into 4 with one reserved, and not with two."""
        blocks = BlockManager(num_blocks=4, block_size=2)
        seq = sequence(1, 2, 3, 4, 5)

        assert blocks.admit(seq, num_reserved_blocks=num_reserved) is expected
        assert len(seq.block_table) == (3 if expected else 0)

    def test_live_hits_cost_nothing(self) -> None:
        """Blocks that another sequence holds anyway need not be available."""
        blocks = BlockManager(num_blocks=4, block_size=2)
        admitted(blocks, 1, 2, 3, 4, 5)

        assert blocks.admit(sequence(1, 2, 3, 4, 6), num_reserved_blocks=0)
        assert not blocks.admit(sequence(1, 2, 3, 4, 7), num_reserved_blocks=0)

    def test_cached_hits_cost_a_block_each(self) -> None:
        """A cached block that is taken up is no longer available to others."""
        blocks = BlockManager(num_blocks=4, block_size=1)
        blocks.free(admitted(blocks, 1, 2))

        assert not blocks.admit(sequence(1, 2, 3), num_reserved_blocks=2)
        assert blocks.admit(sequence(1, 2, 3), num_reserved_blocks=1)

    def test_refusal_changes_nothing(self) -> None:
        """A sequence that cannot grow keeps what it has."""
        blocks = BlockManager(num_blocks=2, block_size=2)
        seq = admitted(blocks, 1, 2, 3)
        seq.token_ids += [4, 5]

        assert not blocks.grow(seq)
        assert len(seq.block_table) == 2
        blocks.check_integrity([seq.block_table])


class TestIntegrity:
    def test_a_lost_table_is_noticed(self) -> None:
        """A block with a reference that no table names is an error."""
        blocks = BlockManager(num_blocks=4, block_size=2)
        admitted(blocks, 1, 2, 3)

        with pytest.raises(EngineError, match="as many references as tables"):
            blocks.check_integrity()

    def test_a_table_that_names_a_free_block_is_noticed(self) -> None:
        """A block that is used without a reference is an error."""
        with pytest.raises(EngineError, match="as many references as tables"):
            BlockManager(num_blocks=4, block_size=2).check_integrity([[0]])


class Ownership(RuleBasedStateMachine):
    """Random lives of sequences over few blocks, beside a model of what each block's slots hold."""

    sequences = Bundle("sequences")

    @initialize(num_blocks=st.integers(1, 10), block_size=st.integers(1, 3), prefix_caching=st.booleans())
    def start(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.blocks = BlockManager(num_blocks=num_blocks, block_size=block_size, prefix_caching=prefix_caching)
        self.live: list[Sequence] = []
        self.content: dict[int, tuple[int, ...]] = {}  # block → all tokens up to its last computed one

    @rule(target=sequences, prompt=token_ids(max_size=12), num_reserved=st.integers(0, 2))
    def admit(self, prompt: list[int], num_reserved: int) -> object:
        seq = sequence(*prompt)
        available = self.blocks.num_available_blocks
        if not self.blocks.admit(seq, num_reserved_blocks=num_reserved):
            assert self.blocks.num_available_blocks == available
            assert not seq.block_table
            return multiple()
        assert self.blocks.num_available_blocks >= num_reserved
        assert seq.num_computed_tokens < seq.num_tokens
        self.live.append(seq)
        return seq

    @rule(seq=sequences, num_tokens=st.integers(1, 8))
    def compute(self, seq: Sequence, num_tokens: int) -> None:
        end = min(seq.num_tokens, seq.num_computed_tokens + num_tokens)
        size = self.blocks.block_size
        for position in range(seq.num_computed_tokens, end):
            block_id = seq.block_table[position // size]
            assert sum(block_id in each.block_table for each in self.live) == 1, "a block that is written is shared"
            self.content[block_id] = tuple(seq.token_ids[: position + 1])
        compute(self.blocks, seq, end)

    @rule(seq=sequences, token_id=st.integers(0, 1))
    def append(self, seq: Sequence, token_id: int) -> None:
        if seq.num_computed_tokens == seq.num_tokens:
            seq.token_ids.append(token_id)
            if not self.blocks.grow(seq):
                seq.token_ids.pop()

    @rule(seq=sequences, num_tokens=st.integers(0, 6), num_reserved=st.integers(0, 2))
    def draft(self, seq: Sequence, num_tokens: int, num_reserved: int) -> None:
        available = self.blocks.num_available_blocks
        room = self.blocks.stretch(seq, num_tokens, num_reserved_blocks=num_reserved)
        assert 0 <= room <= num_tokens
        assert self.blocks.blocks_for(seq.num_tokens + room) <= len(seq.block_table)
        assert self.blocks.num_available_blocks >= min(available, num_reserved)
        self.blocks.check_integrity(each.block_table for each in self.live)
        self.blocks.trim(seq)
        assert self.blocks.num_available_blocks == available

    @rule(seq=consumes(sequences), forget=st.booleans())
    def free(self, seq: Sequence, forget: bool) -> None:
        self.blocks.free(seq, forget=forget)
        self.live.remove(seq)

    @invariant()
    def books_balance(self) -> None:
        self.blocks.check_integrity(seq.block_table for seq in self.live)
        named = {block_id for seq in self.live for block_id in seq.block_table}
        assert self.blocks.num_available_blocks + len(named) == self.blocks.num_blocks
        assert self.blocks.usage == pytest.approx(len(named) / self.blocks.num_blocks)

    @invariant()
    def tables_lead_to_the_sequence_s_own_tokens(self) -> None:
        size = self.blocks.block_size
        for seq in self.live:
            assert len(seq.block_table) == self.blocks.blocks_for(seq.num_tokens)
            for i, block_id in enumerate(seq.block_table[: self.blocks.blocks_for(seq.num_computed_tokens)]):
                end = min((i + 1) * size, seq.num_computed_tokens)
                assert self.content[block_id] == tuple(seq.token_ids[:end])

    def teardown(self) -> None:
        if hasattr(self, "blocks"):
            for seq in self.live:
                self.blocks.free(seq)
            self.blocks.check_integrity()
            assert self.blocks.usage == 0


TestOwnership = Ownership.TestCase
TestOwnership.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
