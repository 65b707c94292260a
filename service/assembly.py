"""Puts an engine together from settings: what the offline door, the benchmark and a replica have in common.

Without a model (`runner = synthetic`) nothing here imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from service.attention import AttentionSource
from service.config import Settings
from service.embedding import EmbeddingSource
from service.engine.attention import EngineAttention
from service.engine.core import EngineConfig, EngineCore
from service.engine.embedding import EngineEmbedding
from service.engine.loop import EngineBackend
from service.engine.runner_protocol import Runner
from service.engine.synthetic import StepCost, SyntheticRunner
from service.model.description import read_config
from service.model.hub import Progress, resolve_model
from service.text.byte_level import byte_level_parts
from service.text.tokenizer import Tokenizer, load_tokenizer

SYNTHETIC_MODEL_LEN = 8192


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine with the tokenizer of its model and the name it is served under; `step_cost` is what to expect.

    `attention` and `embedding` make a source for the backend that is put around the engine; None without a model.
    """

    core: EngineCore
    runner: Runner
    tokenizer: Tokenizer
    model_id: str
    cache_dtype: str
    step_cost: StepCost
    attention: Callable[[EngineBackend], AttentionSource] | None = None
    embedding: Callable[[EngineBackend], EmbeddingSource] | None = None


def load_engine(
    settings: Settings, *, clock: Callable[[], float] = time.monotonic, progress: Progress | None = None
) -> Engine:
    """Fetch what is missing, load the model and set up the engine. Raises ConfigError, StartupError or ModelError."""
    runner: Runner
    attention: Callable[[EngineBackend], AttentionSource] | None = None
    embedding: Callable[[EngineBackend], EmbeddingSource] | None = None
    if settings.runner == "synthetic":
        tokenizer, cache_dtype, step_cost = load_tokenizer_of(settings), "none", settings.synthetic_cost
        runner = SyntheticRunner(
            cost=step_cost,
            block_size=settings.block_size,
            max_model_len=context_length(settings),
            vocab_size=tokenizer.vocab_size,
        )
    else:
        from service import model_runner  # noqa: PLC0415 - torch is slow to import

        tokenizer = load_tokenizer_of(settings, progress)
        path = resolve_model(settings.model, settings.cache_path)
        runner = model_runner.load_runner(settings, path, tokenizer.eos_token_ids)
        cache_dtype, step_cost = model_runner.cache_dtype(runner), model_runner.expected_step_cost(runner)
        attention = partial(EngineAttention, model_runner.attention_model(runner))
        embedding = partial(EngineEmbedding, model_runner.embedding_model(runner))
    config = EngineConfig(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        prefix_caching=settings.prefix_caching,
    )
    core = EngineCore(runner, config, clock)
    return Engine(core, runner, tokenizer, settings.model_id, cache_dtype, step_cost, attention, embedding)


def context_length(settings: Settings) -> int:
    """Most tokens of a sequence, as far as settings and the model's description tell; the model must be there."""
    if settings.max_model_len is not None:
        return settings.max_model_len
    if settings.runner == "synthetic":
        return SYNTHETIC_MODEL_LEN
    return read_config(resolve_model(settings.model, settings.cache_path)).max_position


def load_tokenizer_of(settings: Settings, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer of the model that is served; fetches the model if need be."""
    if settings.runner == "synthetic":
        return Tokenizer(byte_level_parts())
    return load_tokenizer(resolve_model(settings.model, settings.cache_path, progress))
