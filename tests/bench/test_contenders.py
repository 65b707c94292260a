"""Contenders do the work they are timed for: so many tokens, for so many sequences."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from service.bench.contenders import Headcount, Transformers
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from tests.engine.fakes import HistoryRunner
from tests.model.tiny_models import SIZES, random_model, saved

PROMPTS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def core() -> EngineCore:
    """At most four tokens a step: prompts are computed one after the other."""
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=4, prefix_caching=False)
    return EngineCore(HistoryRunner(num_blocks=64), config, clock=lambda: 0.0)


def test_every_sequence_takes_part_in_every_step() -> None:
    """Also the first ones, which have more tokens than asked for when the last prompt is done at last."""
    engine = core()
    headcount = Headcount(engine)
    headcount.start(PROMPTS, 2)
    assert [len(headcount.step()) for _ in range(2)] == [3, 3]
    headcount.finish()
    assert not engine.has_work


def test_what_is_given_up_is_not_waited_for() -> None:
    """An engine that ends a sequence because it waited too long cannot be measured; it is no endless loop."""
    seconds = itertools.count()
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=4, prefix_caching=False, queue_timeout_s=0.5)
    runner = HistoryRunner(num_blocks=64)
    headcount = Headcount(EngineCore(runner, config, clock=lambda: time.monotonic() + next(seconds)))
    with pytest.raises(AssertionError, match="a sequence ended that was to go on"):
        headcount.start(PROMPTS, 2)


def test_a_load_is_answered_whole() -> None:
    """Nothing is left running, and the number of tokens is what was asked for."""
    engine = core()
    Headcount(engine).answer([(prompt, 5) for prompt in PROMPTS])
    assert not engine.has_work


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # older versions know only it
def test_transformers_does_the_same_work(tmp_path: Path) -> None:
    """A token of each sequence for each step, and a padded batch for a load."""
    path = saved(random_model(LlamaConfig(**SIZES)), tmp_path)
    peer = Transformers(path, torch.float32)
    peer.start(PROMPTS, 1)
    peer.step()
    assert peer._cache.get_seq_length() == 4
    peer.finish()
    peer.answer([([1, 2], 3), ([1, 2, 3], 4)])
