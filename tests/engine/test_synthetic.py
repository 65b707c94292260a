"""The model that is none: time by formula, tokens by hash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.synthetic import StepCost, SyntheticRunner
from service.errors import ConfigError, GrammarError
from service.types import FinishReason, TokenEvent, TokenLogprob
from tests.engine.fakes import FakeClock, output, request, run


def core(runner: SyntheticRunner, max_num_batched_tokens: int = 64) -> EngineCore:
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=max_num_batched_tokens)
    return EngineCore(runner, config, FakeClock())


def test_a_step_takes_what_the_formula_says() -> None:
    """Prompt of 10, then two single tokens; beside it from the second step a prompt of 3."""
    slept: list[float] = []
    cost = StepCost(base_s=100.0, per_sequence_s=10.0, per_prefill_token_s=1.0, per_context_token_s=0.01)
    engine = core(SyntheticRunner(cost=cost, sleep=slept.append))
    engine.add(request(*range(10), max_tokens=3))
    engine.step()
    engine.add(request(1, 2, 3, max_tokens=1))
    engine.step()
    engine.step()

    assert slept == pytest.approx(
        [
            100 + 10 + 9 + 0.10,
            100 + 20 + 2 + 0.11 + 0.03,
            100 + 10 + 0.12,
        ]
    )


@pytest.mark.parametrize("budget", [8, 9, 64])
def test_tokens_do_not_depend_on_batching(budget: int) -> None:
    """They are those of the request alone."""
    prompts = [tuple(range(i, i + 20)) for i in range(5)]
    alone = [run(core(SyntheticRunner()), request(*prompt, request_id="x", max_tokens=20)) for prompt in prompts]
    requests = [request(*prompt, max_tokens=20) for prompt in prompts]

    together = run(core(SyntheticRunner(), budget), *requests)

    for events, each in zip(alone, requests, strict=True):
        assert output(together, each.request_id) == output(events, "x")
    assert len({output(events, "x") for events in alone}) == 5


def test_a_grammar_is_followed_to_its_end() -> None:
    """Any token that it allows, and the end where nothing else may come; when it fails, so does its sequence."""

    class Letters:
        def matcher(self) -> Letters:
            return self

        def mask(self, output_token_ids: Sequence[int]) -> bytes:
            if len(output_token_ids) == 3:
                return b""
            return bytes([0b110])

    class Failing(Letters):
        def mask(self, output_token_ids: Sequence[int]) -> bytes:
            raise GrammarError("too complex")

    asked = [replace(request(max_tokens=9), grammar=grammar) for grammar in (Letters(), Failing())]
    events = run(core(SyntheticRunner(vocab_size=10)), *asked)
    *letters, end = output(events, asked[0].request_id)

    assert len(letters) == 3
    assert set(letters) <= {1, 2}
    assert end == 9
    assert [event.error for event in events if event.request_id == asked[1].request_id] == ["too complex"]


def ends(events: Sequence[TokenEvent]) -> tuple[int, FinishReason | None]:
    return sum(len(event.token_ids) for event in events), events[-1].finish_reason


@pytest.mark.parametrize(
    ("num_output_tokens", "sampling", "expected"),
    [
        (None, {"max_tokens": 200}, (200, FinishReason.LENGTH)),
        (7, {"max_tokens": 200}, (7, FinishReason.STOP)),
        (7, {"max_tokens": 5}, (5, FinishReason.LENGTH)),
        (7, {"max_tokens": 9, "ignore_eos": True}, (9, FinishReason.LENGTH)),
        (7, {"max_tokens": 20, "min_tokens": 10}, (11, FinishReason.STOP)),
    ],
)
def test_the_end_comes_when_configured(
    num_output_tokens: int | None, sampling: dict[str, Any], expected: tuple[int, FinishReason]
) -> None:
    """Never by chance, never against what the request asks for."""
    runner = SyntheticRunner(vocab_size=4, num_output_tokens=num_output_tokens)

    assert ends(run(core(runner), request(1, 2, **sampling))) == expected


def test_every_token_is_certain() -> None:
    """Log-probabilities are answered too: there is only one possibility."""
    [event] = run(core(SyntheticRunner()), request(1, 2, max_tokens=1, logprobs=3, prompt_logprobs=0))

    [token_id] = event.token_ids
    assert event.logprobs == (TokenLogprob(token_id, 0.0, ((token_id, 0.0),)),)
    assert event.prompt_logprobs == (None, TokenLogprob(2, 0.0))


@pytest.mark.parametrize("name", ["num_blocks", "block_size", "max_model_len", "vocab_size"])
def test_sizes_that_cannot_work_are_refused_by_name(name: str) -> None:
    """A model of size zero is a mistake in a setting."""
    with pytest.raises(ConfigError, match=name):
        SyntheticRunner(**{name: 0})  # type: ignore[arg-type]


def test_it_needs_no_torch() -> None:
    """A fleet of synthetic replicas loads no tensor library."""
    code = "import sys, service.engine.loop, service.engine.synthetic; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
