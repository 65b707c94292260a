"""What a step tells clients and metrics."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.types import FinishReason, SequenceTimings
from tests.engine.fakes import (
    FakeClock,
    HistoryRunner,
    NamedAdapter,
    engine,
    logprob_of,
    request,
    run,
    steps,
)

LENGTH = FinishReason.LENGTH


class TestPromptLogprobs:
    @pytest.mark.parametrize("budget", [1, 2, 3, 16])
    @pytest.mark.parametrize("max_tokens", [0, 1, 3])
    def test_they_come_once_and_whole(self, budget: int, max_tokens: int) -> None:
        """Whatever the chunks: with the first event, one entry per prompt token, the first None."""
        core = engine(max_num_seqs=1, max_num_batched_tokens=budget)
        prompt = (5, 6, 7, 8, 9)

        events = run(core, request(*prompt, max_tokens=max_tokens, prompt_logprobs=0))

        scores = [event.prompt_logprobs for event in events]
        assert scores[0] == (None, *(logprob_of(token_id, i) for i, token_id in enumerate(prompt) if i > 0))
        assert scores[1:] == [None] * (max(1, max_tokens) - 1)

    def test_scoring_alone_brings_no_token(self) -> None:
        """max_tokens 0 ends with length when the prompt is computed."""
        [event] = run(engine(), request(5, 6, max_tokens=0, prompt_logprobs=0))

        assert (event.token_ids, event.finish_reason) == ((), LENGTH)

    def test_a_prompt_of_one_token_has_one_empty_entry(self) -> None:
        """Nothing precedes the first token."""
        assert run(engine(), request(5, prompt_logprobs=0))[0].prompt_logprobs == (None,)

    def test_a_cached_prompt_is_computed_again(self) -> None:
        """What the prefix cache would bring has no scores."""
        core = engine()
        prompt = tuple(range(12))
        run(core, request(*prompt))

        event = run(core, request(*prompt, prompt_logprobs=0))[0]

        assert event.prompt_logprobs is not None
        assert len(event.prompt_logprobs) == 12
        assert event.num_prefix_hit_tokens == 0

    def test_only_the_first_of_n_brings_them(self) -> None:
        """They are the same for all."""
        events = run(engine(), request(5, 6, 7, n=2, max_tokens=1, prompt_logprobs=0))

        assert [event.prompt_logprobs is not None for event in events] == [True, False]

    def test_preemption_amid_the_prompt_does_not_repeat_them(self) -> None:
        """The older takes the blocks when the younger has four of six tokens: it is computed twice and scored once."""
        runner = HistoryRunner(num_blocks=5, block_size=2, max_model_len=12)
        core = engine(runner, max_num_seqs=2, max_num_batched_tokens=2)
        prompt = (9, 8, 7, 6, 5, 4)
        old, young = request(1, max_tokens=9), request(*prompt, max_tokens=2, prompt_logprobs=0)

        events = run(core, old, young)

        assert events[-1].timings is not None
        assert events[-1].timings.num_preemptions == 1
        scored = [event.prompt_logprobs for event in events if event.prompt_logprobs is not None]
        assert scored == [(None, *(logprob_of(token_id, i) for i, token_id in enumerate(prompt) if i > 0))]


class TestReport:
    def test_events_carry_logprobs_when_asked(self) -> None:
        """One entry per token."""
        events = run(engine(), request(1, max_tokens=2, logprobs=0))

        assert [len(event.logprobs) for event in events] == [1, 1]

    def test_times_and_counts_of_a_request(self) -> None:
        """Queue, first token and gaps are measured on the engine's clock; the timings come first and last."""
        clock = FakeClock(now=100.0)
        core = engine(clock=clock)
        core.add(request(1, 2, 3, max_tokens=3, arrival_at=98.0))
        seen, told = [], []
        for (event,), stats in steps(core):
            told.append(event.timings and (event.timings.scheduled_at, event.timings.last_token_at))
            seen.append((stats.num_prompt_tokens, stats.num_output_tokens, stats.ttft_s, stats.itl_s))
            clock.now += 0.5

        assert seen == [(3, 1, (2.0,), ()), (0, 1, (), (0.5,)), (0, 1, (), (0.5,))]
        assert told == [(100.0, 100.0), None, (100.0, 101.0)]
        [(reason, timings)] = stats.finished
        assert reason is LENGTH
        assert (timings.arrival_at, timings.scheduled_at, timings.first_token_at, timings.last_token_at) == (
            98.0,
            100.0,
            100.0,
            101.0,
        )
        assert (timings.num_prompt_tokens, timings.num_output_tokens) == (3, 3)

    def test_prefix_hits_are_counted_per_sequence_and_step(self) -> None:
        """A prompt that was seen before is found but for its last block."""
        core = engine()
        prompt = tuple(range(10))
        run(core, request(*prompt))
        core.add(request(*prompt))

        events, stats = core.step()

        assert events[0].num_prefix_hit_tokens == 8
        assert (stats.num_prefix_queried_tokens, stats.num_prefix_hit_tokens) == (10, 8)
        assert stats.num_prompt_tokens == 2

    def test_preemptions_are_counted_and_do_not_restart_the_queue_time(self) -> None:
        """A preempted sequence keeps the instant when it was first scheduled."""
        clock = FakeClock(now=100.0)
        runner = HistoryRunner(num_blocks=4, block_size=2, max_model_len=8)
        core = engine(runner, clock, max_num_seqs=2)
        core.add(request(1, max_tokens=7, request_id="old"))
        core.add(request(2, max_tokens=7, request_id="young"))
        ends: dict[str, SequenceTimings] = {}
        num_preemptions = 0
        for events, stats in steps(core):
            num_preemptions += stats.num_preemptions
            ends |= {event.request_id: event.timings for event in events if event.timings}
            clock.now += 1.0

        young = ends["young"]
        assert num_preemptions == young.num_preemptions > 0
        assert young.scheduled_at == 100.0

    @pytest.mark.parametrize("prompt", [(2,), (9, 8, 7, 6, 5, 4)])
    def test_a_prompt_is_counted_once(self, prompt: tuple[int, ...]) -> None:
        """Also when preemption has it computed again, in part or as a whole: the sum is what clients are billed."""
        runner = HistoryRunner(num_blocks=5, block_size=2, max_model_len=10)
        core = engine(runner, max_num_seqs=2, max_num_batched_tokens=2)
        core.add(request(1, max_tokens=9))
        core.add(request(*prompt, max_tokens=10 - len(prompt)))

        all_stats = [stats for _, stats in steps(core)]

        assert sum(stats.num_preemptions for stats in all_stats) > 0
        assert sum(stats.num_prompt_tokens + stats.num_prefix_hit_tokens for stats in all_stats) == 1 + len(prompt)

    def test_fresh_seeds_differ_and_given_seeds_count_up(self) -> None:
        """Two equal requests without a seed draw differently; choice i of a seeded one draws with seed + i."""
        core = engine()
        for each in (request(n=2), request(), request(n=2, seed=7)):
            core.add(each)
        seeds = [sequence.seed for sequences in core._unfinished.values() for sequence in sequences]

        assert len(set(seeds[:3])) == 3
        assert seeds[3:] == [7, 8]

    def test_adapters_in_use_are_told(self) -> None:
        """Those of running sequences and those of waiting ones, each once; none when all have ended."""
        sql, chat = NamedAdapter("sql", b"1"), NamedAdapter("chat", b"2")
        core = engine(max_num_seqs=2)
        for adapter in (sql, None, sql, chat):
            core.add(replace(request(), adapter=adapter))

        told = [(set(stats.running_adapters), set(stats.waiting_adapters)) for _, stats in steps(core)]

        assert told[0] == ({"sql"}, {"sql", "chat"})
        assert ({"sql", "chat"}, set()) in told
        assert told[-1] == (set(), set())
