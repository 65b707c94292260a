"""The split of a step's time, on a tiny random model."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from service.assembly import Engine, Model
from service.bench.profile import HOST, MODEL, StepBench, points_of
from service.bench.subject import Subject
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.runner import ModelRunner
from service.engine.synthetic import StepCost
from service.model.loader import load_model
from service.text.byte_level import byte_level_parts
from service.text.tokenizer import Tokenizer
from tests.model.tiny_models import SIZES, random_model, saved

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    path = tmp_path_factory.mktemp("tiny")
    saved(random_model(LlamaConfig(**{**SIZES, "max_position_embeddings": 1024})), path)
    model = load_model(path, dtype="float32", device="cpu", cache_dir=path)
    runner = ModelRunner(model, num_blocks=200, max_model_len=1024, eos_token_ids=frozenset())
    core = EngineCore(runner, EngineConfig(prefix_caching=False), clock=lambda: 0.0)
    described = Model(runner=runner, cache_dtype="float32", step_cost=StepCost())
    return Subject(Engine(core, described, Tokenizer(byte_level_parts()), "tiny", {}), model)


def test_every_part_of_a_step_is_found(subject: Subject) -> None:
    """No part is empty: none of the functions that stand for it has lost its work to another."""
    bench = StepBench(subject)
    for split in (bench.decode(3), bench.prefill()):
        assert split.parts_s.keys() == {*HOST, *MODEL}
        assert [part for part, seconds in split.parts_s.items() if seconds <= 0.0] == []
        assert 0.0 < split.host_share < 1.0
        assert split.bare_s > 0.0
    assert not subject.engine.core.has_work


def test_serving_is_not_watched(subject: Subject) -> None:
    """Functions are timed while the bench runs, and are the plain ones again afterwards."""
    before = [vars(owner)[name] for owner, name, _ in points_of(subject.model)]
    StepBench(subject).prefill()
    assert [vars(owner)[name] for owner, name, _ in points_of(subject.model)] == before


def test_the_least_work_of_a_token(subject: Subject) -> None:
    """Two operations and four bytes of float32 for every weight of the linear layers, the output layer among them."""
    layer = 64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 96
    num_weights = 2 * layer + 96 * 64
    assert subject.flops_per_token == 2 * num_weights
    assert subject.weight_bytes == 4 * num_weights
