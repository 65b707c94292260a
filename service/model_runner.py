"""The runner of a real model, from settings: weights, KV cache, compute threads. Importing this brings torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from service.autoscaling.cost_model import prior_of_model
from service.config import Settings
from service.engine.runner import ModelRunner
from service.engine.synthetic import StepCost
from service.errors import ConfigError, StartupError
from service.model.attention_map import AttentionModel
from service.model.embedding import EmbeddingModel, decoder_embedding
from service.model.encoder import load_encoder
from service.model.encoder_config import read_encoder_config
from service.model.loader import DTYPES, load_model
from service.model.lora_files import read_adapter
from service.model.memory import available_bytes
from service.model.transformer import Transformer
from service.types import Adapter

logger = logging.getLogger(__name__)

GIB = 1 << 30
DEFAULT_KV_BYTES = 2 * GIB
KV_SHARE_OF_FREE_MEMORY = 0.4
MIN_KV_TOKENS = 256
# An ordinary machine of each kind: believed for a minute, until steps have been measured.
CPU_BYTES_PER_S, CPU_FLOPS = 3e10, 3e11
CUDA_BYTES_PER_S, CUDA_FLOPS = 1e12, 1e14


def load_runner(settings: Settings, path: Path, eos_token_ids: frozenset[int]) -> ModelRunner:
    """Load the model in `path`. Raises ConfigError, StartupError or ModelError."""
    _set_threads(settings)
    return _runner(settings, _load_model(settings, path), eos_token_ids)


def cache_dtype(runner: ModelRunner) -> str:
    """What keys and values are kept in."""
    return str(runner.model.dtype).removeprefix("torch.")


def attention_model(runner: ModelRunner) -> AttentionModel:
    """Its model, as one that can be looked into."""
    return AttentionModel(runner.model)


def embedding_model(runner: ModelRunner) -> EmbeddingModel:
    """Its model, as one that makes vectors of texts."""
    return decoder_embedding(runner.model, runner.max_model_len)


def adapter_reader(runner: ModelRunner, max_rank: int) -> Callable[[Path, str], Adapter]:
    """Reads the adapter in a directory, under a name, for its model. Raises ModelError."""
    return partial(read_adapter, runner.model, max_rank=max_rank)


def expected_step_cost(runner: ModelRunner) -> StepCost:
    """What a step should cost before any has run: a guess from the size of the model, for the autoscaler's start."""
    num_weights = sum(linear.num_weights for linear in runner.model.linears)
    num_bytes = sum(linear.num_bytes for linear in runner.model.linears)
    return _prior(num_weights, num_bytes, runner.model.device)


def load_encoder_model(settings: Settings, path: Path) -> tuple[EmbeddingModel, StepCost]:
    """The encoder in `path`, and what it should cost. Raises ModelError."""
    if settings.quantization != "none":
        raise ConfigError("quantization is for models that generate text: leave it out for an encoder.")
    _set_threads(settings)
    device = torch.device(_device(settings))
    dtype = torch.float32 if settings.dtype == "auto" else DTYPES[settings.dtype]
    config = read_encoder_config(path)
    cost = _prior(config.num_weights, config.num_weights * dtype.itemsize, device)
    return load_encoder(path, dtype=dtype, device=device), cost


def _set_threads(settings: Settings) -> None:
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 1) // settings.max_replicas))


def _device(settings: Settings) -> str:
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _prior(num_weights: int, num_bytes: int, device: torch.device) -> StepCost:
    is_cpu = device.type == "cpu"
    return prior_of_model(
        num_parameters=num_weights,
        weight_bytes=num_bytes,
        bytes_per_s=CPU_BYTES_PER_S if is_cpu else CUDA_BYTES_PER_S,
        flops_per_s=CPU_FLOPS if is_cpu else CUDA_FLOPS,
    )


def _load_model(settings: Settings, path: Path) -> Transformer:
    return load_model(
        path,
        dtype=settings.dtype,
        quantization=settings.quantization,
        device=_device(settings),
        cache_dir=settings.cache_path,
        block_size=settings.block_size,
    )


def _runner(settings: Settings, model: Transformer, eos_token_ids: frozenset[int]) -> ModelRunner:
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
        eos_token_ids=eos_token_ids,
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
