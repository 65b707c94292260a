"""Who is computed in a step: budgets, order, sharing, preemption; then the whole engine under random load."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.scheduler import MAX_WAYS_GIVEN
from service.types import Claim, FinishReason, GenerateRequest, TokenEvent
from tests.engine.fakes import (
    BOMB,
    POISON,
    FakeClock,
    HistoryRunner,
    Says,
    engine,
    expected_output,
    next_token_id,
    output,
    repetitive_token_id,
    request,
    run,
    steps,
)
from tests.engine.strategies import engine_configs, token_ids


class TestBudget:
    def test_running_sequences_come_before_a_long_prompt(self) -> None:
        """A long prompt takes what the running ones leave, in chunks: nobody waits for it."""
        runner = HistoryRunner()
        core = engine(runner, max_num_seqs=2, max_num_batched_tokens=4)
        core.add(request(1, request_id="short", max_tokens=6))
        core.step()
        core.add(request(*range(10), request_id="long", max_tokens=1))

        for _ in range(4):
            core.step()

        assert runner.batches[1:] == [
            [("short", 0, 1), ("long", 0, 3)],
            [("short", 0, 1), ("long", 0, 3)],
            [("short", 0, 1), ("long", 0, 3)],
            [("short", 0, 1), ("long", 0, 1)],
        ]

    def test_no_more_than_max_num_seqs_run(self) -> None:
        """The third waits until one of two is done."""
        runner = HistoryRunner()
        core = engine(runner, max_num_seqs=2)

        run(core, *(request(i, max_tokens=i + 1, request_id=str(i)) for i in range(3)))

        assert [[name for name, _, _ in batch] for batch in runner.batches] == [["0", "1"], ["1", "2"], ["2"], ["2"]]


class TestSharing:
    def test_siblings_compute_the_prompt_once(self) -> None:
        """Of n sequences one computes the prompt; the others wait for it and compute their last block."""
        runner = HistoryRunner(block_size=4)
        mine = request(*range(10), n=3, max_tokens=2, request_id="x")

        events = run(engine(runner, max_num_batched_tokens=32), mine)

        assert runner.batches == [
            [("x", 0, 10)],
            [("x", 0, 1), ("x", 1, 2), ("x", 2, 2)],
            [("x", 1, 1), ("x", 2, 1)],
        ]
        assert {output(events, "x", i) for i in range(3)} == {expected_output(tuple(range(10)), 2)}

    def test_siblings_of_a_chunked_prompt_wait_for_all_of_it(self) -> None:
        """They do not start on the blocks that the first has yet to compute."""
        runner = HistoryRunner(block_size=4)

        run(engine(runner, max_num_batched_tokens=6), request(*range(10), n=2, max_tokens=1, request_id="x"))

        assert runner.batches == [[("x", 0, 6)], [("x", 0, 4)], [("x", 1, 2)]]

    def test_simultaneous_requests_with_one_system_prompt_compute_it_once(self) -> None:
        """It need not be one request: content decides."""
        runner = HistoryRunner(block_size=4)
        system = tuple(range(8))
        requests = [request(*system, 20 + i, max_tokens=1, request_id=str(i)) for i in range(3)]

        run(engine(runner, max_num_batched_tokens=32), *requests)

        assert runner.batches == [[("0", 0, 9)], [("1", 0, 1), ("2", 0, 1)]]

    def test_a_prompt_that_ends_with_a_block_is_awaited_too(self) -> None:
        """Its last block is about to be full."""
        runner = HistoryRunner(block_size=4)
        system = tuple(range(4))

        run(engine(runner), request(*system, request_id="0", max_tokens=1), request(*system, 9, request_id="1"))

        assert runner.batches[:2] == [[("0", 0, 4)], [("1", 0, 1)]]

    def test_without_prefix_caching_siblings_are_simply_computed(self) -> None:
        """Nobody waits for what will not be found."""
        runner = HistoryRunner(block_size=4)

        run(
            engine(runner, prefix_caching=False, max_num_batched_tokens=32),
            request(*range(10), n=2, max_tokens=1, request_id="x"),
        )

        assert runner.batches == [[("x", 0, 10), ("x", 1, 10)]]

    def test_different_prompts_do_not_wait(self) -> None:
        """Both are computed in one step."""
        runner = HistoryRunner(block_size=4)

        run(engine(runner), request(*range(6), request_id="a", max_tokens=1), request(9, request_id="b", max_tokens=1))

        assert runner.batches == [[("a", 0, 6), ("b", 0, 1)]]


class TestPreemption:
    def test_the_youngest_goes_and_is_the_first_to_come_back(self) -> None:
        """Three grow in a cache for two: the youngest gives way, then runs before the one behind it."""
        runner = HistoryRunner(num_blocks=6, block_size=2, max_model_len=8)
        core = engine(runner, max_num_seqs=3)
        names = "abcd"

        events = run(core, *(request(i, request_id=name, max_tokens=5) for i, name in enumerate(names)))

        batches = ["".join(name for name, _, _ in batch) for batch in runner.batches]
        last_seen = {name: max(i for i, batch in enumerate(batches) if name in batch) for name in names}
        finished = [event.request_id for event in events if event.finish_reason]
        preempted = {event.request_id for event in events if event.timings and event.timings.num_preemptions}
        for i, batch in enumerate(batches):
            unfinished = "".join(name for name in names if last_seen[name] >= i)
            assert unfinished.startswith(batch), "nobody overtakes"
        assert finished == list(names)
        assert preempted == {"c"}

    def test_admission_leaves_a_block_for_each_running_sequence(self) -> None:
        """A newcomer that would be preempted at the next token is not admitted in the first place."""
        core = engine(HistoryRunner(num_blocks=4, block_size=2, max_model_len=8), max_num_seqs=2)
        core.add(request(1, 2, max_tokens=4))
        core.step()

        core.add(request(3, 4, 5, max_tokens=4))
        all_stats = [stats for _, stats in steps(core)]

        assert sum(stats.num_preemptions for stats in all_stats) == 0


class Load(RuleBasedStateMachine):
    """Requests come, go and fail between random steps of a small engine."""

    @initialize(
        config=engine_configs(),
        block_size=st.integers(1, 4),
        num_blocks=st.integers(3, 14),
        says=st.sampled_from([next_token_id, repetitive_token_id]),
    )
    def start(self, config: EngineConfig, block_size: int, num_blocks: int, says: Says) -> None:
        self.config = config
        self.runner = HistoryRunner(
            num_blocks=num_blocks, block_size=block_size, max_model_len=min(24, num_blocks * block_size), says=says
        )
        self.core = EngineCore(self.runner, config, FakeClock())
        self.accepted: dict[str, GenerateRequest] = {}
        self.events: list[TokenEvent] = []
        self.aborted: set[str] = set()

    @rule(
        prompt=token_ids(max_size=12),
        max_tokens=st.integers(0, 12),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        special=st.sampled_from([None, None, None, None, POISON, BOMB]),
        scores=st.booleans(),
        who=st.sampled_from([("", 1.0, 0), ("", 1.0, 0), ("a", 1.0, 0), ("b", 2.5, 0), ("a", 1.0, 1), ("b", 2.5, 1)]),
    )
    def add(
        self, prompt: list[int], max_tokens: int, n: int, special: int | None, scores: bool, who: tuple[str, float, int]
    ) -> None:
        prompt = prompt if special is None else [*prompt, special]
        scores = scores or max_tokens == 0
        if len(prompt) + max_tokens <= self.runner.max_model_len:
            new = request(*prompt, n=n, max_tokens=max_tokens, prompt_logprobs=0 if scores else None)
            new = replace(new, claim=Claim(tenant=who[0], weight=who[1], priority=who[2]))
            self.core.add(new)
            self.accepted[new.request_id] = new

    @rule()
    def step(self) -> None:
        queues = self.queues()
        num_batches = len(self.runner.batches)
        events, stats = self.core.step()
        self.events += events
        assert (len(self.runner.batches) > num_batches) == bool(queues), "no progress"
        if queues:
            batch = self.runner.batches[-1]
            assert all(num_new_tokens > 0 for _, _, num_new_tokens in batch)
            assert sum(num_new_tokens for _, _, num_new_tokens in batch) <= self.config.max_num_batched_tokens
            assert len(batch) <= self.config.max_num_seqs
            for queue in queues:
                order = [queue.index(entry[:2]) for entry in batch if entry[:2] in queue]
                assert order == sorted(set(order)), "first come, first served"
        assert stats.num_running + stats.num_waiting == sum(map(len, self.queues()))
        assert 0 <= stats.kv_usage <= 1

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.accepted:
            request_id = data.draw(st.sampled_from(sorted(self.accepted)))
            self.core.abort(request_id)
            self.aborted.add(request_id)

    def queues(self) -> list[list[tuple[str, int]]]:
        """Request id and index of each tenant's live sequences at each priority, those that run first."""
        by_tenant: dict[tuple[int, str], list[tuple[str, int]]] = {}
        scheduler = self.core._scheduler
        for sequence in (*scheduler._running, *scheduler._waiting):
            key = sequence.claim.priority, sequence.claim.tenant
            by_tenant.setdefault(key, []).append((sequence.request_id, sequence.index))
        return list(by_tenant.values())

    @invariant()
    def queues_are_in_order_of_arrival(self) -> None:
        arrival = {request_id: i for i, request_id in enumerate(self.accepted)}
        for queue in self.queues():
            entries = [(arrival[request_id], index) for request_id, index in queue]
            assert entries == sorted(entries)

    @invariant()
    def waiting_sequences_own_nothing(self) -> None:
        assert all(not seq.block_table and seq.num_computed_tokens == 0 for seq in self.core._scheduler._waiting)

    @invariant()
    def drafts_leave_nothing_behind(self) -> None:
        blocks = self.core._blocks
        assert all(len(seq.block_table) <= blocks.blocks_for(seq.num_tokens) for seq in self.core._scheduler._running)

    @invariant()
    def books_balance(self) -> None:
        self.core.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        work = sum((len(r.prompt_token_ids) + r.sampling.max_tokens + 1) * r.n for r in self.accepted.values())
        # Nobody starves: someone who is not sent back any more computes a token at least in every step.
        for events, stats in steps(self.core, limit=(1 + MAX_WAYS_GIVEN) * work + 1):
            self.events += events
            assert stats.duration_s == 0
        assert self.core._blocks.usage == 0
        self.core.check_integrity()
        for accepted in self.accepted.values():
            for index in range(accepted.n):
                self.check_sequence(accepted, index)

    def check_sequence(self, accepted: GenerateRequest, index: int) -> None:
        """Exactly one end, right for its cause, and the right tokens up to there."""
        mine = [event for event in self.events if (event.request_id, event.index) == (accepted.request_id, index)]
        ends = [event.finish_reason for event in mine if event.finish_reason is not None]
        tokens = output(mine, accepted.request_id, index)
        expected = expected_output(accepted.prompt_token_ids, accepted.sampling.max_tokens, self.runner.says)
        assert ends == [mine[-1].finish_reason], "exactly one terminal event, and it is the last"
        assert tokens == expected[: len(tokens)]
        assert len({event.num_prefix_hit_tokens for event in mine if event.token_ids}) <= 1
        if ends == [FinishReason.LENGTH]:
            assert tokens == expected
            scored = sum(event.prompt_logprobs is not None for event in mine)
            assert scored == (accepted.sampling.prompt_logprobs is not None and index == 0)
        elif ends == [FinishReason.ABORT]:
            assert accepted.request_id in self.aborted
        else:
            assert ends == [FinishReason.ERROR]
            assert any({POISON, BOMB} & set(other.prompt_token_ids) for other in self.accepted.values())


TestLoad = Load.TestCase
TestLoad.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
