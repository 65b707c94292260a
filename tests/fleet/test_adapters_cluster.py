"""Adapters on a real server: two replicas behind HAProxy, told by one request what all of them serve."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.api.tenants import ADMIN, entry, headers_of, write
from tests.fleet.server_process import running_server
from tests.model.adapters import default_model_modules, write_adapter

pytestmark = pytest.mark.cluster

NUM_ASKED = 8  # so many that both replicas are


def texts(http: httpx.Client, model: str) -> set[str]:
    """What greedy completions say, each over a connection of its own, so that it may reach either replica."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 6, "temperature": 0}
    answers = [http.post("/v1/completions", json=body, headers={"connection": "close"}) for _ in range(NUM_ASKED)]
    assert {(answer.status_code, answer.json()["model"]) for answer in answers} == {(200, model)}
    return {answer.json()["choices"][0]["text"] for answer in answers}


def test_all_replicas_follow(default_model_path: Path, tmp_path: Path) -> None:
    """An adapter of the start and one loaded later are served alike by both, beside the model; unloaded, by neither."""
    assert default_model_path.exists()
    modules = default_model_modules()
    given = write_adapter(tmp_path / "given", modules, rank=2, seed=1)
    write_adapter(tmp_path / "adapters" / "later", modules, rank=4, seed=2)
    keys = write(tmp_path / "keys.toml", entry("root", ADMIN))
    flags = [
        *("--min-replicas", "2", "--max-replicas", "2", "--threads", "1", "--kv-cache-gib", "0.25"),
        *("--lora-modules", f'{{"given": "{given}"}}', "--lora-dir", str(tmp_path / "adapters")),
        *("--api-keys-file", str(keys)),
    ]
    with running_server(*flags) as server, server.client() as http:
        http.headers.update(headers_of("root"))
        model = http.get("/v1/models").json()["data"][0]["id"]
        refused = http.post("/v1/load_lora_adapter", json={"lora_name": "later", "lora_path": "../given"})
        loaded = http.post("/v1/load_lora_adapter", json={"lora_name": "later", "lora_path": "later"})
        assert (refused.status_code, loaded.status_code) == (400, 200), loaded.text
        said = [texts(http, name) for name in (model, "given", "later")]
        assert [len(each) for each in said] == [1, 1, 1]
        assert len(set.union(*said)) == 3
        assert [each["id"] for each in http.get("/v1/models").json()["data"]] == [model, "given", "later"]
        assert http.post("/tokenize", json={"model": "later", "prompt": "abc"}).status_code == 200
        assert 'running_lora_adapters="later"' in http.get("/metrics").text
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": "later"}).status_code == 200
        body = {"model": "later", "prompt": "x", "max_tokens": 1}
        gone = [http.post("/v1/completions", json=body, headers={"connection": "close"}) for _ in range(NUM_ASKED)]
        assert {answer.status_code for answer in gone} == {404}
