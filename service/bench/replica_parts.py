"""What a replica puts around its engine, as far as it does so without Ray."""

from __future__ import annotations

import time

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from service import __version__
from service.api.app import create_app
from service.api.state import ApiState
from service.assembly import Engine
from service.engine.config import LoopConfig
from service.engine.loop import EngineBackend
from service.metrics.exposition import render
from service.metrics.recorder import Recorder, ReplicaInfo
from service.types import GenerateRequest, SamplingParams


def ready(engine: Engine) -> tuple[EngineBackend, FastAPI]:
    """A started backend, and the application that would be served."""
    runner, registry = engine.model.runner, CollectorRegistry()
    info = ReplicaInfo(
        model_name=engine.model_id,
        max_model_len=engine.core.max_model_len,
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        cache_dtype=engine.model.cache_dtype,
        prefix_caching=engine.core.config.prefix_caching,
    )
    recorder = Recorder(info, registry)
    backend = EngineBackend(engine.core, LoopConfig(step_cost=engine.model.step_cost), observer=recorder.on_step)
    backend.start()
    state = ApiState(
        backend=backend,
        tokenizer=engine.tokenizer,
        model_id=engine.model_id,
        version=__version__,
        created_at=int(time.time()),
        recorder=recorder,
        render_metrics=lambda: render(registry),
    )
    return backend, create_app(state)


async def first_token(backend: EngineBackend, prompt: tuple[int, ...]) -> None:
    """Returns when it is there."""
    request = GenerateRequest(
        request_id="first",
        prompt_token_ids=prompt,
        sampling=SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True),
        arrival_at=time.monotonic(),
    )
    async for event in backend.generate(request):
        assert event.error is None, event.error
