"""What a replica says of itself once: to the metrics, and to the autoscaler."""

from __future__ import annotations

from service.assembly import Engine
from service.autoscaling.signals import EngineLimits
from service.config import Settings
from service.fleet.brain import slo_of
from service.metrics.recorder import ReplicaInfo


def info_of(settings: Settings, engine: Engine) -> ReplicaInfo:
    return ReplicaInfo(
        model_name=engine.model_id,
        max_model_len=engine.core.max_model_len,
        num_blocks=engine.model.runner.num_blocks,
        block_size=engine.model.runner.block_size,
        cache_dtype=engine.model.cache_dtype,
        prefix_caching=settings.prefix_caching,
        max_loras=settings.max_loras if settings.serves_adapters else 0,
        num_speculative_tokens=settings.most_drafted_tokens,
        slo=slo_of(settings),
    )


def limits_of(engine: Engine) -> EngineLimits:
    config, runner = engine.core.config, engine.model.runner
    return EngineLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_tokens=runner.num_blocks * runner.block_size,
        block_size=runner.block_size,
    )
