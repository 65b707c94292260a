"""Puts an engine together from settings: what the offline door, the benchmark and a replica have in common."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from service.autoscaling.cost_model import prior_of_model
from service.config import Settings
from service.engine.core import EngineConfig, EngineCore
from service.engine.runner import ModelRunner
from service.engine.runner_protocol import Runner
from service.engine.synthetic import StepCost, SyntheticRunner
from service.errors import ConfigError, StartupError
from service.model.hub import Progress, resolve_model
from service.model.loader import load_model
from service.model.memory import available_bytes
from service.model.transformer import Transformer
from service.text.byte_level import byte_level_parts
from service.text.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

GIB = 1 << 30
DEFAULT_KV_BYTES = 2 * GIB
KV_SHARE_OF_FREE_MEMORY = 0.4
MIN_KV_TOKENS = 256
SYNTHETIC_MODEL_LEN = 8192
# An ordinary machine of each kind: believed for a minute, until steps have been measured.
CPU_BYTES_PER_S, CPU_FLOPS = 3e10, 3e11
CUDA_BYTES_PER_S, CUDA_FLOPS = 1e12, 1e14


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine with the tokenizer of its model and the name it is served under."""

    core: EngineCore
    runner: Runner
    tokenizer: Tokenizer
    model_id: str
    cache_dtype: str


def load_engine(
    settings: Settings, *, clock: Callable[[], float] = time.monotonic, progress: Progress | None = None
) -> Engine:
    """Fetch what is missing, load the model and set up the engine. Raises ConfigError, StartupError or ModelError."""
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // settings.max_replicas))
    runner: Runner
    if settings.runner == "synthetic":
        tokenizer, cache_dtype = Tokenizer(byte_level_parts()), "none"
        runner = _synthetic_runner(settings, tokenizer)
    else:
        path = resolve_model(settings.model, settings.cache_path, progress)
        tokenizer = load_tokenizer(path)
        model = _load_model(settings, path)
        runner, cache_dtype = _model_runner(settings, model, tokenizer), str(model.dtype).removeprefix("torch.")
    config = EngineConfig(
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        prefix_caching=settings.prefix_caching,
    )
    return Engine(EngineCore(runner, config, clock), runner, tokenizer, settings.model_id, cache_dtype)


def expected_step_cost(settings: Settings, engine: Engine) -> StepCost:
    """What a step should cost before any has run: a guess from the size of the model, for the autoscaler's start."""
    if not isinstance(engine.runner, ModelRunner):
        return settings.synthetic_cost
    model = engine.runner.model
    num_weights = sum(linear.num_weights for linear in model.linears)
    is_cpu = model.device.type == "cpu"
    return prior_of_model(
        num_parameters=num_weights,
        weight_bytes=num_weights * model.dtype.itemsize,
        bytes_per_s=CPU_BYTES_PER_S if is_cpu else CUDA_BYTES_PER_S,
        flops_per_s=CPU_FLOPS if is_cpu else CUDA_FLOPS,
    )


def _synthetic_runner(settings: Settings, tokenizer: Tokenizer) -> Runner:
    return SyntheticRunner(
        cost=settings.synthetic_cost,
        block_size=settings.block_size,
        max_model_len=settings.max_model_len or SYNTHETIC_MODEL_LEN,
        vocab_size=tokenizer.vocab_size,
    )


def _load_model(settings: Settings, path: Path) -> Transformer:
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(
        path, dtype=settings.dtype, device=device, cache_dir=settings.cache_path, block_size=settings.block_size
    )


def _model_runner(settings: Settings, model: Transformer, tokenizer: Tokenizer) -> ModelRunner:
    max_model_len = settings.max_model_len or model.config.max_position
    if max_model_len > model.config.max_position:
        raise ConfigError(
            f"max_model_len = {max_model_len} is more than the {model.config.max_position} tokens that the model"
            " allows: set it lower, or leave it out."
        )
    return ModelRunner(
        model,
        num_blocks=_num_blocks(settings, model, max_model_len),
        max_model_len=max_model_len,
        eos_token_ids=tokenizer.eos_token_ids,
    )


def _num_blocks(settings: Settings, model: Transformer, max_model_len: int) -> int:
    """How many KV blocks there is memory for: as set, else what is useful within a share of what is free."""
    available = available_bytes(model.device)
    if settings.kv_cache_gib is not None:
        wanted = int(settings.kv_cache_gib * GIB)
        if available is not None and wanted > available:
            raise StartupError(
                f"kv_cache_gib = {settings.kv_cache_gib:g} is more than the {available / GIB:.1f} GiB of memory that"
                " are free: set it lower."
            )
    else:
        one_sequence = model.kv_bytes_per_block * -(-max_model_len // model.block_size)
        wanted = max(DEFAULT_KV_BYTES, one_sequence)
        if available is not None:
            wanted = min(wanted, int(available * KV_SHARE_OF_FREE_MEMORY / settings.max_replicas))
    num_blocks = wanted // model.kv_bytes_per_block
    if num_blocks * model.block_size < MIN_KV_TOKENS:
        raise StartupError(
            f"There is memory for the keys and values of only {num_blocks * model.block_size} tokens: free some, set"
            " kv_cache_gib, or choose a smaller model."
        )
    if num_blocks * model.block_size < max_model_len:
        logger.warning("The KV cache holds %d tokens: longer sequences are refused.", num_blocks * model.block_size)
    return num_blocks
