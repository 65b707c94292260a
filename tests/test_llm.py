"""The offline door, over the synthetic runner: every token is certain there, and comes at once."""

from __future__ import annotations

import pytest

from service.config import Settings
from service.engine.synthetic import StepCost
from service.errors import ContextLengthError, InvalidRequestError
from service.llm import LLM
from service.types import SamplingParams

FIVE = SamplingParams(max_tokens=5)


@pytest.fixture
def llm() -> LLM:
    return LLM.load(Settings(runner="synthetic", synthetic_cost=StepCost()))


def test_prompts_are_batched_and_answered_each_for_itself(llm: LLM) -> None:
    """Outputs come in the order of the prompts and are those that each prompt gets alone."""
    prompts = [[1, 2, 3], [4], [5, 6]]
    outputs = llm.generate(prompts, FIVE)

    assert [len(output) for output in outputs] == [5, 5, 5]
    assert outputs == [llm.generate([prompt], FIVE)[0] for prompt in prompts]


def test_a_text_is_continued_piece_by_piece(llm: LLM) -> None:
    """The pieces come one by one and add up to the same text each time."""
    pieces = list(llm.complete("abc", FIVE))

    assert len(pieces) > 1
    assert "".join(pieces) == "".join(llm.complete("abc", FIVE))


def test_a_chat_goes_through_the_template(llm: LLM) -> None:
    """The answer is that to the rendered conversation, which is another text than the message."""
    rendered = "<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"
    answer = "".join(llm.chat([{"role": "user", "content": "abc"}], FIVE))

    assert answer == "".join(llm.complete(rendered, FIVE))
    assert answer != "".join(llm.complete("abc", FIVE))


def test_who_stops_reading_leaves_nothing_running(llm: LLM) -> None:
    """A closed stream is aborted, and the engine serves the next as if it had not been."""
    expected = "".join(llm.complete("abc", FIVE))
    stream = llm.complete("a long text", SamplingParams(max_tokens=1000))
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # it is a generator

    assert "".join(llm.complete("abc", FIVE)) == expected


def test_what_cannot_be_served_is_refused(llm: LLM) -> None:
    """With the same errors as over HTTP."""
    with pytest.raises(InvalidRequestError, match="no tokens"):
        next(llm.complete("", FIVE))
    with pytest.raises(ContextLengthError, match="maximum context length is 8192 tokens"):
        next(llm.complete("a", SamplingParams(max_tokens=8192)))
