"""Drafts in the engine's steps: what they bring, what they cost, and that they take nothing from anyone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from service.engine.batch import Batch
from service.engine.config import EngineConfig
from service.engine.runner_protocol import SequenceResult
from service.engine.synthetic import StepCost
from service.errors import ConfigError
from service.types import FinishReason, StepStats
from tests.engine.fakes import (
    FakeClock,
    HistoryRunner,
    engine,
    expected_output,
    output,
    repetitive_token_id,
    request,
    run,
    steps,
)


def num_accepted(all_stats: Iterable[StepStats]) -> int:
    return sum(accepted for stats in all_stats for _, accepted in stats.drafts)


class TestSteps:
    def test_right_guesses_come_in_one_event(self) -> None:
        """Fewer steps, the same tokens; the gap between two steps is one interval, as it is for a client."""
        clock = FakeClock()
        core = engine(HistoryRunner(says=repetitive_token_id), clock, num_speculative_tokens=3)
        mine = request(1, 2, 3, max_tokens=30, logprobs=0)
        core.add(mine)
        events, all_stats = [], []
        for each, stats in steps(core):
            events += each
            all_stats.append(stats)
            clock.now += 0.5

        assert output(events, mine.request_id) == expected_output(mine.prompt_token_ids, 30, repetitive_token_id)
        assert max(len(event.token_ids) for event in events) == 4
        assert all(len(event.logprobs) == len(event.token_ids) for event in events)
        assert sum(stats.num_output_tokens for stats in all_stats) == 30
        assert len(all_stats) == 30 - num_accepted(all_stats) < 20
        assert [stats.itl_s for stats in all_stats[1:]] == [(0.5,)] * (len(all_stats) - 1)
        assert [stats.num_prefill_tokens for stats in all_stats] == [2] + [0] * (len(all_stats) - 1)
        for stats, event in zip(all_stats, events, strict=True):
            assert [accepted for _, accepted in stats.drafts] in ([], [len(event.token_ids) - 1])
            assert stats.num_plain_steps == len(event.token_ids)

    def test_prompts_come_first(self) -> None:
        """Drafts get what a batch leaves of the budget: nothing, while there is a prompt to compute."""
        runner = HistoryRunner(says=lambda _: 7)
        core = engine(runner, num_speculative_tokens=4, max_num_batched_tokens=6)
        core.add(request(7, 7, max_tokens=30, request_id="old"))
        for _ in range(3):
            core.step()
        core.add(request(*range(9), request_id="new", max_tokens=4))
        core.step()
        core.step()

        assert runner.batches == [
            [("old", 0, 2)],
            [("old", 0, 5)],
            [("old", 0, 5)],
            [("old", 0, 1), ("new", 0, 5)],
            [("old", 0, 2), ("new", 0, 4)],
        ]

    def test_a_draft_never_goes_beyond_the_end(self) -> None:
        """Neither more tokens than asked for nor a stop token is guessed."""
        runner = HistoryRunner(says=lambda _: 7, num_blocks=1, block_size=8, max_model_len=8)
        core = engine(runner, num_speculative_tokens=4)
        events = run(core, request(7, 7, 7, max_tokens=5, request_id="x"))
        assert output(events, "x") == (7,) * 5
        assert [num for ((_, _, num),) in runner.batches] == [3, 4]

        stopping = request(7, 7, 7, max_tokens=5, min_tokens=3, stop_token_ids=frozenset({7}), request_id="y")
        events = run(core, stopping)
        assert output(events, "y") == (7,) * 4
        assert events[-1].finish_reason is FinishReason.STOP
        assert all(num == 1 for ((_, _, num),) in runner.batches[3:])

    def test_blocks_that_others_need_are_not_taken(self) -> None:
        """A draft that needs another block is cut where one block for each running sequence would not be left."""

        def longest_draft(num_blocks: int) -> int:
            runner = HistoryRunner(says=lambda _: 7, num_blocks=num_blocks, block_size=4, max_model_len=8)
            core = engine(runner, num_speculative_tokens=4)
            core.add(request(7, 7, max_tokens=6))
            core.step()
            core.step()
            core.check_integrity()
            return runner.batches[-1][0][2] - 1

        assert longest_draft(2) == 1  # to the end of the block that it has
        assert longest_draft(3) == 4


@pytest.mark.parametrize(("num_sequences", "expected"), [(1, 3), (4, 1), (10, 1), (11, 0), (30, 0)])
def test_guesses_end_where_they_cost_more_than_they_bring(num_sequences: int, expected: int) -> None:
    """A token more costs 1, a step 10 and 1 for each sequence: a guess must be right once in (10 + n) / n times."""
    runner = HistoryRunner(says=lambda _: 7, num_blocks=200)
    cost = StepCost(base_s=10.0, per_sequence_s=1.0, per_prefill_token_s=1.0)
    core = engine(
        runner, num_speculative_tokens=4, step_cost=cost, max_num_seqs=num_sequences, max_num_batched_tokens=400
    )
    for _ in range(num_sequences):
        core.add(request(7, 7, max_tokens=20))
    core.step()
    core.step()

    assert runner.batches[-1][-1][2] == 1 + expected


@dataclass(kw_only=True)
class Squeamish(HistoryRunner):
    """Cannot bear some guesses: does what `reacts` says with a batch that has them."""

    reacts: Callable[[Batch, list[SequenceResult]], list[SequenceResult]]

    def execute(self, batch: Batch) -> list[SequenceResult]:
        results = super().execute(batch)
        return self.reacts(batch, results) if batch.num_draft_tokens else results


def crash(_: Batch, __: list[SequenceResult]) -> list[SequenceResult]:
    raise MemoryError


def fail(batch: Batch, results: list[SequenceResult]) -> list[SequenceResult]:
    return [
        SequenceResult(error="not a number") if scheduled.draft_token_ids else result
        for scheduled, result in zip(batch.scheduled, results, strict=True)
    ]


@pytest.mark.parametrize("reacts", [crash, fail])
def test_a_guess_does_no_harm(reacts: Callable[[Batch, list[SequenceResult]], list[SequenceResult]]) -> None:
    """What a step cannot bear with drafts is tried without: it may be a token that would never have come."""
    core = engine(Squeamish(says=repetitive_token_id, reacts=reacts), num_speculative_tokens=3)
    asked = [request(1, 2, i, max_tokens=30) for i in range(3)]

    events = run(core, *asked)

    for each in asked:
        assert output(events, each.request_id) == expected_output(each.prompt_token_ids, 30, repetitive_token_id)


def test_a_negative_number_of_guesses_is_refused() -> None:
    """Zero means none."""
    with pytest.raises(ConfigError, match="num_speculative_tokens"):
        EngineConfig(num_speculative_tokens=-1)
