"""The same requests with and without guesses: what is counted, and that the answers agree."""

from __future__ import annotations

from dataclasses import replace

from service.assembly import load_engine
from service.bench.speculation import NUM_TOKENS, TASKS, Measured, measure
from service.config import Settings
from service.engine.synthetic import StepCost


def test_answers_are_measured_until_there_are_enough() -> None:
    """As many tokens on average as are wanted, of every request some, and the same ones either way."""
    engine = load_engine(Settings(runner="synthetic", synthetic_cost=StepCost(), prefix_caching=False))
    config = replace(engine.core.config, num_speculative_tokens=0, queue_timeout_s=60.0)
    plain, drafted = Measured(), Measured()

    answers = measure(engine, config, TASKS[0], 3, plain)
    same = measure(engine, replace(config, num_speculative_tokens=4), TASKS[0], 3, drafted)

    assert 0 <= plain.num_tokens - 3 * NUM_TOKENS < 3
    assert sum(map(len, answers)) == plain.num_tokens
    assert [answer[:20] for answer in answers] == [answer[:20] for answer in same]
    assert (plain.num_drafted, plain.num_accepted) == (0, 0)
    assert drafted.num_drafted > drafted.num_accepted
    assert len(plain.tokens_per_s) == len(drafted.tokens_per_s) == 1
