"""Adapters from the file to the answer: the default model in two replicas' engines, told through one of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from service.api.app import create_app
from service.assembly import load_engine
from service.config import Settings
from service.engine.config import LoopConfig
from service.engine.loop import EngineBackend
from service.fleet.adapters import adapters_of_replica
from tests.api.fakes import ScriptedBackend, client_for, make_state
from tests.api.tenants import ADMIN, entry, headers_of, ring
from tests.model.adapters import default_model_modules, write_adapter

pytestmark = pytest.mark.integration

MODEL = "smollm2-135m-instruct"


@asynccontextmanager
async def replica(settings: Settings, keys: Path) -> AsyncIterator[httpx.AsyncClient]:
    """What a replica serves, asked by an admin."""
    engine = load_engine(settings)
    backend = EngineBackend(engine.core, LoopConfig())
    backend.start()
    state = replace(
        make_state(ScriptedBackend()),
        backend=backend,
        tokenizer=engine.tokenizer,
        model_id=engine.model_id,
        adapters=adapters_of_replica(settings, engine),
        keys=ring(keys, entry("root", ADMIN)),
        clock=time.monotonic,
    )
    async with client_for(create_app(state)) as http:
        http.headers.update(headers_of("root"))
        yield http
    backend.close()


async def say(http: httpx.AsyncClient, model: str) -> str:
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
    answer = await http.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, model), answer.text
    return str(answer.json()["choices"][0]["text"])


async def test_all_replicas_follow(default_model_path: Path, tmp_path: Path) -> None:
    """An adapter of the start and one loaded later are served alike by both, beside the model; unloaded, by neither."""
    modules = default_model_modules()
    given = write_adapter(tmp_path / "given", modules, rank=2, seed=1)
    write_adapter(tmp_path / "adapters" / "later", modules, rank=4, seed=2)
    settings = Settings(
        model=str(default_model_path),
        served_model_name=MODEL,
        cache_dir=tmp_path,
        kv_cache_gib=0.25,
        threads=1,
        lora_modules={"given": given},
        lora_dir=tmp_path / "adapters",
    )

    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(settings, tmp_path)) for _ in range(2)]
        told, other = replicas
        refused = await told.post("/v1/load_lora_adapter", json={"lora_name": "later", "lora_path": "../given"})
        loaded = await told.post("/v1/load_lora_adapter", json={"lora_name": "later", "lora_path": "later"})
        assert (refused.status_code, loaded.status_code) == (400, 200), loaded.text
        said = [[await say(http, name) for http in replicas] for name in (MODEL, "given", "later")]
        assert all(first == second for first, second in said)
        assert len({first for first, _ in said}) == 3
        models = (await other.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == [MODEL, "given", "later"]
        assert (await other.post("/v1/unload_lora_adapter", json={"lora_name": "later"})).status_code == 200
        for http in replicas:
            assert (await http.post("/v1/completions", json={"model": "later", "prompt": "x"})).status_code == 404
