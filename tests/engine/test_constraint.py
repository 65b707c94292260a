"""Grammars in a batch: only what a mask allows comes, rows without one are left alone, and a failure stays alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.batch import Batch
from service.engine.constraint import constrain
from service.engine.runner_protocol import SequenceResult
from service.engine.sampler import sample
from service.engine.sequence import Sequence as EngineSequence
from service.errors import GrammarError, InvalidRequestError
from service.types import FinishReason, GenerateRequest
from tests.engine.fakes import EOS, VOCAB_SIZE, HistoryRunner, engine, output, request, run
from tests.engine.logits import row, sequence

Rule = Callable[[Sequence[int]], Iterable[int]]


class Allowing:
    """Implements `TokenGrammar` and `TokenMatcher`: after an output may come what `rule` says of it."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def matcher(self) -> Allowing:
        return self

    def mask(self, output_token_ids: Sequence[int]) -> bytes:
        return bits(self._rule(output_token_ids))


def bits(token_ids: Iterable[int]) -> bytes:
    number = sum(1 << token_id for token_id in set(token_ids))
    return number.to_bytes(-(-number.bit_length() // 8), "little")


def set_bits(mask: bytes, _: Sequence[int] = ()) -> list[int]:
    return [i for i in range(len(mask) * 8) if mask[i // 8] >> i % 8 & 1]


def constrained(*allowed: int, output: tuple[int, ...] = (), **sampling: Any) -> EngineSequence:
    seq = sequence(*output, **{"temperature": 0.0, **sampling})
    seq.matcher = Allowing(lambda _: allowed)
    return seq


def fail(_: Sequence[int]) -> Iterable[int]:
    raise GrammarError("it is too complex")


class SamplingRunner(HistoryRunner):
    """A runner whose logits are the same random ones in every step, with the real sampler."""

    def execute(self, batch: Batch) -> list[SequenceResult]:
        super().execute(batch)
        sampled = [scheduled.sequence for scheduled in batch.scheduled if scheduled.samples]
        logits = torch.rand(VOCAB_SIZE, generator=torch.Generator().manual_seed(1)).expand(len(sampled), -1)
        results = iter(sample(logits, sampled))
        return [next(results) if scheduled.samples else SequenceResult() for scheduled in batch.scheduled]


def under(rule: Rule, n: int = 1) -> GenerateRequest:
    return replace(request(max_tokens=6), grammar=Allowing(rule), n=n)


def counting(output: Sequence[int]) -> Iterable[int]:
    """1, 2, 3, then the end."""
    return [EOS if len(output) == 3 else len(output) + 1]


@given(
    vocab_size=st.integers(1, 70),
    masks=st.lists(st.none() | st.binary(max_size=12), min_size=1, max_size=5),
)
@settings(deadline=None)
def test_logits_are_kept_where_the_bit_is_set(vocab_size: int, masks: list[bytes | None]) -> None:
    """Whatever the sizes of mask and vocabulary; a token beyond the mask is forbidden, a bit beyond them no token."""
    logits = torch.arange(len(masks) * vocab_size, dtype=torch.float32).view(len(masks), -1)
    before = logits.clone()
    sequences = [sequence() for _ in masks]
    for each, mask in zip(sequences, masks, strict=True):
        if mask is not None:
            each.matcher = Allowing(partial(set_bits, mask))

    rows = constrain(logits, sequences)

    assert rows.keys() == {i for i, mask in enumerate(masks) if mask is not None}
    for i, values in rows.items():
        allowed = set_bits(masks[i] or b"")
        wanted = [value if token_id in allowed else -math.inf for token_id, value in enumerate(logits[i].tolist())]
        assert isinstance(values, torch.Tensor)
        assert values.tolist() == wanted
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, 2),
        ({"logit_bias": ((0, 100.0),)}, 2),
        ({"logit_bias": ((3, 5.0),)}, 3),
        ({"presence_penalty": 2.0, "output": (2,)}, 3),
        ({"temperature": 1.0, "top_k": 1}, 2),
        ({"temperature": 1.0, "top_p": 0.01}, 2),
    ],
)
def test_the_best_of_what_is_allowed(sampling: dict[str, Any], expected: int) -> None:
    """Bias, penalties and filters choose among the tokens that the grammar leaves."""
    [result] = sample(row(9.0, 8.0, 1.0, 0.5)[None], [constrained(2, 3, **sampling)])

    assert result.token_ids == (expected,)


def test_log_probabilities_are_those_of_the_model() -> None:
    """They tell what the model itself would have said: a forced token may be unlikely."""
    [result] = sample(row(9.0, 0.0)[None], [constrained(1, logprobs=1)])

    [logprob] = result.logprobs
    assert logprob.token_id == 1
    assert logprob.logprob == pytest.approx(-9.0, abs=1e-3)
    assert logprob.top[0][0] == 0


def test_a_failure_hurts_its_own_sequence() -> None:
    """The neighbours in the batch get their tokens."""
    failing = sequence(temperature=0.0)
    failing.matcher = Allowing(fail)
    rows = [constrained(1), failing, sequence(temperature=0.0), constrained()]

    results = sample(row(3.0, 2.0).expand(4, -1), rows)

    assert [result.token_ids for result in results] == [(1,), (), (0,), ()]
    assert [result.error for result in results] == [
        None,
        "it is too complex",
        None,
        "No token is allowed to come next.",
    ]


def test_the_sequence_ends_where_the_grammar_does() -> None:
    """Each of n follows it, beside one that has none."""
    free = request(max_tokens=6)
    bound = under(counting, n=2)

    events = run(engine(SamplingRunner()), free, bound)

    assert [output(events, bound.request_id, index) for index in range(2)] == [(1, 2, 3, EOS)] * 2
    assert len(output(events, free.request_id)) == 6
    reasons = {(event.request_id, event.index): event.finish_reason for event in events if event.finish_reason}
    assert reasons == {
        (bound.request_id, 0): FinishReason.STOP,
        (bound.request_id, 1): FinishReason.STOP,
        (free.request_id, 0): FinishReason.LENGTH,
    }


def test_a_grammar_that_fails_on_its_way_ends_its_sequence_with_an_error() -> None:
    """The event says why."""
    bound = under(lambda output: fail(output) if len(output) == 2 else [5])

    events = run(engine(SamplingRunner()), bound)

    assert output(events, bound.request_id) == (5, 5)
    assert (events[-1].finish_reason, events[-1].error) == (FinishReason.ERROR, "it is too complex")


def test_after_a_preemption_the_grammar_goes_on() -> None:
    """A sequence that lost its blocks is computed again, and its output continues."""
    requests = [under(counting) for _ in range(3)]
    core = engine(SamplingRunner(num_blocks=5, block_size=2), prefix_caching=False)
    events, num_preemptions = [], 0
    for each in requests:
        core.add(replace(each, sampling=replace(each.sampling, max_tokens=3)))
    while core.has_work:
        step = core.step()
        events += step.events
        num_preemptions += step.stats.num_preemptions

    assert num_preemptions > 0
    assert [output(events, each.request_id) for each in requests] == [(1, 2, 3)] * 3


@pytest.mark.parametrize("sampling", [{"ignore_eos": True}, {"min_tokens": 1}])
def test_what_contradicts_a_grammar_is_refused(sampling: dict[str, Any]) -> None:
    """The grammar says where the output ends."""
    [name] = sampling
    with pytest.raises(InvalidRequestError, match="cannot be combined with structured output or tools") as caught:
        replace(request(**sampling), grammar=Allowing(counting))

    assert caught.value.param == name
