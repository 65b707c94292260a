"""Puts an engine together from settings: what the offline door, the benchmark and a replica have in common.

Without a model (`runner = synthetic`) nothing here imports torch.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.attention import AttentionSource
from service.config import Settings
from service.embedding import EmbeddingSource
from service.engine.attention import EngineAttention
from service.engine.config import EngineConfig
from service.engine.core import EngineCore
from service.engine.embedding import EngineEmbedding
from service.engine.encoder_runner import EncoderRunner
from service.engine.faults import FaultyRunner
from service.engine.loop import EngineBackend
from service.engine.runner_protocol import Runner
from service.engine.synthetic import StepCost
from service.errors import ConfigError
from service.model.description import context_length_of
from service.model.encoder_config import is_encoder
from service.model.hub import Progress, resolve_model
from service.text.byte_level import byte_level_parts
from service.text.tokenizer import Tokenizer, load_tokenizer
from service.types import Adapter

SYNTHETIC_MODEL_LEN = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What an engine runs; `step_cost` is what to expect.

    `attention` and `embedding` make a source for the backend that is put around the engine; None where the model has
    none. A model that does not generate text may still embed it. `read_adapter` reads what is in a directory, under a
    name; None where the model takes no adapters.
    """

    runner: Runner
    cache_dtype: str
    step_cost: StepCost
    attention: Callable[[EngineBackend], AttentionSource] | None = None
    embedding: Callable[[EngineBackend], EmbeddingSource] | None = None
    generates: bool = True
    read_adapter: Callable[[Path, str], Adapter] | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine with its model, the tokenizer of the model, the name it is served under, and `lora_modules`."""

    core: EngineCore
    model: Model
    tokenizer: Tokenizer
    model_id: str
    adapters: Mapping[str, Adapter]


@contextmanager
def without_collection() -> Iterator[None]:
    """What is imported and read for an engine is a million objects that stay: to look for garbage among them, again and
    again, took a sixth of a cold start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@without_collection()
def load_engine(
    settings: Settings, *, clock: Callable[[], float] = time.monotonic, progress: Progress | None = None
) -> Engine:
    """Fetch what is missing, load the model and set up the engine. Raises ConfigError, StartupError or ModelError."""
    tokenizer = load_tokenizer_of(settings, progress)
    model = _synthetic(settings, tokenizer) if settings.runner == "synthetic" else _real(settings, tokenizer)
    config = EngineConfig(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        prefix_caching=settings.prefix_caching,
        queue_timeout_s=settings.longest_wait_s,
        num_speculative_tokens=settings.most_drafted_tokens,
        step_cost=model.step_cost,
    )
    core = EngineCore(model.runner, config, clock)
    return Engine(core, model, tokenizer, settings.model_id, _adapters(settings, model))


def _synthetic(settings: Settings, tokenizer: Tokenizer) -> Model:
    runner = FaultyRunner(
        cost=settings.synthetic_cost,
        faults=settings.synthetic_faults,
        block_size=settings.block_size,
        max_model_len=context_length(settings),
        vocab_size=tokenizer.vocab_size,
    )
    return Model(runner=runner, cache_dtype="none", step_cost=settings.synthetic_cost)


def _real(settings: Settings, tokenizer: Tokenizer) -> Model:
    from service import model_runner  # noqa: PLC0415 - torch is slow to import

    path = resolve_model(settings.model, settings.cache_path)
    if is_encoder(path):
        encoder, step_cost = model_runner.load_encoder_model(settings, path)
        return Model(
            runner=EncoderRunner(max_model_len=encoder.shape.max_tokens, vocab_size=encoder.shape.vocab_size),
            cache_dtype="none",
            step_cost=step_cost,
            embedding=partial(EngineEmbedding, encoder),
            generates=False,
        )
    runner = model_runner.load_runner(settings, path, tokenizer.eos_token_ids)
    return Model(
        runner=runner,
        cache_dtype=model_runner.cache_dtype(runner),
        step_cost=model_runner.expected_step_cost(runner),
        attention=partial(EngineAttention, model_runner.attention_model(runner)),
        embedding=partial(EngineEmbedding, model_runner.embedding_model(runner)),
        read_adapter=model_runner.adapter_reader(runner, settings.max_lora_rank),
    )


def _adapters(settings: Settings, model: Model) -> Mapping[str, Adapter]:
    if not settings.serves_adapters:
        return {}
    if model.read_adapter is None:
        raise ConfigError(
            "lora_modules and lora_dir are for models that generate text, and not for runner = synthetic."
        )
    if len(settings.lora_modules) > settings.max_loras:
        raise ConfigError(f"lora_modules names more adapters than max_loras = {settings.max_loras}.")
    if settings.model_id in settings.lora_modules:
        raise ConfigError(f"lora_modules gives an adapter the name of the model, {settings.model_id}.")
    return {name: model.read_adapter(path.expanduser(), name) for name, path in settings.lora_modules.items()}


def context_length(settings: Settings) -> int:
    """Most tokens of a sequence, as far as settings and the model's description tell; the model must be there."""
    if settings.max_model_len is not None:
        return settings.max_model_len
    if settings.runner == "synthetic":
        return SYNTHETIC_MODEL_LEN
    return context_length_of(resolve_model(settings.model, settings.cache_path))


def load_tokenizer_of(settings: Settings, progress: Progress | None = None) -> Tokenizer:
    """The tokenizer of the model that is served; fetches the model if need be."""
    if settings.runner == "synthetic":
        return Tokenizer(byte_level_parts())
    return load_tokenizer(resolve_model(settings.model, settings.cache_path, progress))
