"""One step at a time: admission, stop conditions, aborts, failures, and what a step reports."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest

from service.engine.batch import Batch
from service.engine.config import EngineConfig
from service.engine.isolation import NUM_FAILED_IN_A_ROW
from service.engine.runner_protocol import SequenceResult
from service.engine.sequence import Sequence
from service.errors import ConfigError, ContextLengthError, EngineError, HeadcountError, InvalidRequestError
from service.types import FinishReason, GenerateRequest, TokenEvent, TokenMatcher
from tests.engine.fakes import (
    BOMB,
    EOS,
    POISON,
    HistoryRunner,
    engine,
    expected_output,
    output,
    request,
    run,
    steps,
)


def reasons(events: list[TokenEvent]) -> dict[tuple[str, int], FinishReason]:
    """How each sequence ended; fails where one ended twice."""
    ends = [event for event in events if event.finish_reason is not None]
    found = {(event.request_id, event.index): event.finish_reason for event in ends if event.finish_reason}
    assert len(found) == len(ends)
    return found


class TestConfig:
    @pytest.mark.parametrize(
        ("config", "name"),
        [
            ({"max_num_seqs": 0}, "max_num_seqs"),
            ({"max_num_seqs": 8, "max_num_batched_tokens": 7}, "max_num_batched_tokens"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_by_name(self, config: dict[str, Any], name: str) -> None:
        """A budget below the number of running sequences would starve the youngest."""
        with pytest.raises(ConfigError, match=name):
            EngineConfig(**config)


class TestAdmission:
    def test_a_request_that_exceeds_the_context_is_refused_with_the_numbers(self) -> None:
        """The message is the one that clients look for."""
        with pytest.raises(ContextLengthError) as caught:
            engine(HistoryRunner(max_model_len=10)).add(request(1, 2, 3, max_tokens=8))

        assert str(caught.value) == (
            "This model's maximum context length is 10 tokens. However, you requested 11 tokens (3 in the messages, "
            "8 in the completion). Please reduce the length of the messages or completion."
        )

    def test_a_request_that_exceeds_the_kv_cache_is_refused(self) -> None:
        """It would wait for ever for blocks that do not exist."""
        core = engine(HistoryRunner(num_blocks=2, block_size=4))

        with pytest.raises(ContextLengthError, match="is 8 tokens"):
            core.add(request(1, 2, 3, max_tokens=6))
        assert not core.has_work

    def test_a_request_that_just_fits_is_served(self) -> None:
        """The limit itself is allowed."""
        fits = request(1, 2, 3, max_tokens=5)

        events = run(engine(HistoryRunner(num_blocks=2, block_size=4)), fits)

        assert output(events, fits.request_id) == expected_output((1, 2, 3), 5)

    @pytest.mark.parametrize(
        ("bad", "param"),
        [
            (request(1, 50), "prompt"),
            (request(1, -1), "prompt"),
            (request(1, logit_bias=((50, 1.0),)), "logit_bias"),
            (request(1, stop_token_ids=frozenset({50})), "stop_token_ids"),
        ],
    )
    def test_a_token_id_outside_the_vocabulary_is_refused(self, bad: GenerateRequest, param: str) -> None:
        """It would index past the embedding or the logits, and take the step down."""
        with pytest.raises(InvalidRequestError) as caught:
            engine().add(bad)

        assert caught.value.param == param

    def test_an_id_in_use_is_refused_and_free_again_at_the_end(self) -> None:
        """Two requests with one id could not be told apart; the first one is not disturbed."""
        core = engine()
        core.add(request(1, request_id="x"))

        with pytest.raises(InvalidRequestError):
            core.add(request(2, request_id="x"))
        first = [event for events, _ in steps(core) for event in events]
        second = run(core, request(2, request_id="x"))

        assert output(first, "x") == expected_output((1,), 4)
        assert output(second, "x") == expected_output((2,), 4)


STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


class TestStopConditions:
    @pytest.mark.parametrize(
        ("script", "sampling", "expected", "reason"),
        [
            ({1: EOS}, {}, 2, STOP),
            ({1: EOS}, {"max_tokens": 2}, 2, STOP),  # both at once: it stopped by itself
            ({1: EOS}, {"ignore_eos": True}, 4, LENGTH),
            ({1: EOS}, {"min_tokens": 1}, 2, STOP),
            ({1: EOS}, {"min_tokens": 2}, 4, LENGTH),
            ({2: 7}, {"stop_token_ids": frozenset({7})}, 3, STOP),
            ({2: 7}, {"stop_token_ids": frozenset({7}), "ignore_eos": True}, 3, STOP),
            ({}, {}, 4, LENGTH),
            ({}, {"max_tokens": 1}, 1, LENGTH),
        ],
    )
    def test_what_ends_a_sequence(
        self, script: dict[int, int], sampling: dict[str, Any], expected: int, reason: FinishReason
    ) -> None:
        """The sequence ends after `expected` tokens for `reason`."""
        mine = request(1, 2, 3, request_id="x", **sampling)

        events = run(engine(HistoryRunner(script=script)), mine)

        assert len(output(events, "x")) == expected
        assert reasons(events) == {("x", 0): reason}

    def test_a_stop_token_in_the_prompt_does_not_stop(self) -> None:
        """Only what is generated counts."""
        events = run(engine(), request(1, EOS, request_id="x"))

        assert reasons(events) == {("x", 0): LENGTH}

    def test_the_stop_token_comes_with_the_last_event(self) -> None:
        """The last token of a stopped sequence is what stopped it."""
        last = run(engine(HistoryRunner(script={1: EOS})), request())[-1]

        assert (last.token_ids, last.finish_reason) == ((EOS,), STOP)


class TestAbort:
    def test_an_aborted_request_ends_with_the_next_step_and_frees_its_blocks(self) -> None:
        """Running or waiting, all its sequences; its neighbour goes on."""
        core = engine(max_num_seqs=2)
        gone, stays = request(1, 2, request_id="gone", n=3), request(4, 5, request_id="stays")
        core.add(gone)
        core.add(stays)
        core.step()

        core.abort("gone")
        events, stats = core.step()
        events += [event for more, _ in steps(core) for event in more]

        ends = reasons(events)
        assert [ends["gone", i] for i in range(3)] == [FinishReason.ABORT] * 3
        assert output(events, "stays") == expected_output((4, 5), 4)
        assert stats.num_waiting + stats.num_running == 1
        core.check_integrity()

    def test_the_last_abort_is_reported_too(self) -> None:
        """Gauges are back at zero after the last request went away."""
        core = engine()
        core.add(request(request_id="x"))
        core.step()
        core.abort("x")

        [(events, stats)] = list(steps(core))

        assert reasons(events) == {("x", 0): FinishReason.ABORT}
        assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0.0)

    def test_aborting_what_is_not_there_is_harmless(self) -> None:
        """The end and the abort may cross."""
        core = engine()
        core.abort("nobody")

        assert not core.has_work


class NarrowRunner(HistoryRunner):
    """Has memory for two sequences at a time."""

    def execute(self, batch: Batch) -> list[SequenceResult]:
        if len(batch.scheduled) > 2:
            raise MemoryError
        return super().execute(batch)


class BrokenGrammar:
    """A grammar with a bug."""

    def matcher(self) -> TokenMatcher:
        raise RuntimeError("a bug")


class TestFailures:
    def test_a_sequence_that_fails_ends_alone(self) -> None:
        """Its neighbours get their tokens."""
        core = engine()
        bad, good = request(1, POISON, request_id="bad"), request(1, 2, request_id="good")

        events = run(core, bad, good)

        assert reasons(events) == {("bad", 0): FinishReason.ERROR, ("good", 0): LENGTH}
        assert [event.error for event in events if event.error] == ["not a number"]
        assert output(events, "good") == expected_output((1, 2), 4)

    def test_what_a_failed_sequence_computed_is_not_reused(self) -> None:
        """Its first chunk, computed before the failure showed, is forgotten: it may be what was wrong."""
        core = engine(max_num_seqs=1, max_num_batched_tokens=4)
        prompt = (1, 2, 3, 4, 5)
        run(core, request(*prompt, POISON))

        [event, *_] = run(core, request(*prompt, 6))

        assert event.num_prefix_hit_tokens == 0

    @pytest.mark.parametrize("culprits", [{0}, {3}, {1, 2}, {0, 1, 2, 3}])
    def test_a_step_that_fails_ends_who_is_at_fault(self, culprits: set[int]) -> None:
        """One terminal event each, no detail of ours in it; neighbours get their tokens, those that waited too."""
        core = engine(max_num_seqs=4)
        requests = [request(1, BOMB if i in culprits else i, request_id=f"{i}") for i in range(6)]

        ends = reasons(events := run(core, *requests))
        assert {int(name) for (name, _), reason in ends.items() if reason is FinishReason.ERROR} == culprits
        for i in set(range(6)) - culprits:
            assert output(events, f"{i}") == expected_output((1, i), 4)
        assert {event.error for event in events if event.error} == {
            "The engine failed while computing this request (MemoryError)."
        }
        core.check_integrity()

    def test_a_runner_with_too_little_memory_gets_less_at_a_time(self) -> None:
        """Nobody fails: two sequences fit where four do not, and the tokens are the same."""
        requests = [request(1, i, request_id=f"{i}") for i in range(4)]

        events = run(engine(NarrowRunner()), *requests)

        assert set(reasons(events).values()) == {LENGTH}
        assert [output(events, f"{i}") for i in range(4)] == [expected_output((1, i), 4) for i in range(4)]

    def test_a_runner_that_fails_whatever_it_is_given_stops_the_engine(self) -> None:
        """Or it would fail every request, fast, and draw those of the whole fleet to itself."""
        core = engine(max_num_seqs=4)
        bombs = [request(1, BOMB, request_id=f"{i}", n=2) for i in range(NUM_FAILED_IN_A_ROW)]
        run(core, *bombs[1:])
        run(core, request(1, 2))
        run(core, *bombs[1:])

        with pytest.raises(EngineError, match="whatever"):
            run(core, bombs[0])

    def test_a_grammar_that_fails_ends_its_request(self) -> None:
        """Also where it cannot even begin; whoever came with it is served."""
        core = engine()
        broken = dataclasses.replace(request(1, n=2, request_id="broken"), grammar=BrokenGrammar())

        events = run(core, broken, request(1, 2, request_id="good"))

        assert reasons(events) == {
            ("broken", 0): FinishReason.ERROR,
            ("broken", 1): FinishReason.ERROR,
            ("good", 0): LENGTH,
        }
        assert output(events, "good") == expected_output((1, 2), 4)

    def test_a_rejected_request_leaves_nothing_behind(self) -> None:
        """Refusals are errors with a sentence, and the engine stays idle."""
        core = engine()
        with pytest.raises(HeadcountError):
            core.add(request(*range(40), max_tokens=40))

        assert not core.has_work


class TestLeftovers:
    def test_a_finished_request_leaves_nothing_behind(self) -> None:
        """Nothing refers to its sequences any more: memory does not grow with the number of requests."""
        core = engine()
        run(core, *(request(i, request_id=f"left-behind-{i}") for i in range(9)))
        core.add(request(1, max_tokens=9, request_id="left-behind-aborted"))
        core.step()
        core.abort("left-behind-aborted")
        core.step()
        gc.collect()
        sequences = [each for each in gc.get_objects() if type(each) is Sequence]

        assert [each for each in sequences if each.request_id.startswith("left-behind")] == []
