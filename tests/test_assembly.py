"""An engine put together from settings: one around an encoder gives vectors, and refuses to generate."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch.testing import assert_close

from service.api.app import create_app
from service.assembly import context_length, load_engine
from service.config import Settings
from service.engine.config import LoopConfig
from service.engine.loop import EngineBackend
from service.errors import ConfigError, ModelNotFoundError
from tests.api.fakes import MESSAGES, ScriptedBackend, client_for, complaint, make_state
from tests.model.test_encoder import random_bert
from tests.model.tiny_models import saved

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", "."]
FIRST, LAST = WORDS.index("[CLS]"), WORDS.index("[SEP]")


def encoder_directory(path: Path) -> tuple[Path, Any]:
    """A tiny random BERT with a tokenizer of nine words, as `sentence-transformers` keeps it; and the model itself."""
    model = random_bert()
    tokenizer = Tokenizer(WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token=WORDS[1]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", FIRST), ("[SEP]", LAST)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding()
    saved(model, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    tokenizer.save(str(path / "tokenizer.json"))
    return path, model


@asynccontextmanager
async def client_of(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    engine = load_engine(settings)
    backend = EngineBackend(engine.core, LoopConfig())
    backend.start()
    assert engine.model.embedding is not None
    state = replace(
        make_state(ScriptedBackend()),
        backend=backend,
        tokenizer=engine.tokenizer,
        model_id=engine.model_id,
        embedding=engine.model.embedding(backend),
        generates=engine.model.generates,
    )
    async with client_for(create_app(state)) as client:
        yield client
    backend.close()


async def test_an_encoder_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    """From text to numbers: lower case, word pieces, special tokens, the network, the pooling."""
    path, model = encoder_directory(tmp_path / "bert")
    async with client_of(Settings(model=str(path), cache_dir=tmp_path)) as client:
        answer = (await client.post("/v1/embeddings", json={"input": ["The cats sat.", "cat"]})).json()
        (described,) = (await client.get("/v1/models")).json()["data"]
        tokens = (await client.post("/tokenize", json={"prompt": "The cats sat."})).json()
        text = (await client.post("/detokenize", json={"tokens": tokens["tokens"]})).json()["prompt"]
    for found, token_ids in zip(answer["data"], ([2, 4, 5, 7, 6, 8, 3], [2, 5, 3]), strict=True):
        with torch.no_grad():
            pooled = model(torch.tensor([token_ids])).last_hidden_state[0].mean(0)
        expected = torch.nn.functional.normalize(pooled, dim=0)

        assert_close(torch.tensor(found["embedding"]), expected, rtol=1e-4, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] == 10
    assert (described["embedding"]["kind"], described["embedding"]["dimensions"]) == ("encoder", 64)
    assert (tokens["tokens"], tokens["max_model_len"]) == ([2, 4, 5, 7, 6, 8, 3], 64)
    assert text == "[CLS] the cats sat .[SEP]"
    assert context_length(Settings(model=str(path))) == 64


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "the cat"}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3}),
    ],
)
async def test_an_encoder_generates_nothing(path: str, body: dict[str, Any], tmp_path: Path) -> None:
    """Each route says what to use instead."""
    directory, _ = encoder_directory(tmp_path / "bert")
    async with client_of(Settings(model=str(directory), cache_dir=tmp_path)) as client:
        answer = await client.post(path, json=body)

    message = "The model 'bert' gives embeddings, not text: use /v1/embeddings."
    assert answer.status_code == 400
    if path == "/v1/messages":
        assert answer.json()["error"] == {"type": "invalid_request_error", "message": message}
    else:
        assert answer.json() == complaint(message, "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_modules": {"a": Path("x")}}, "runner = synthetic"),
        ({"lora_dir": Path()}, "runner = synthetic"),
    ],
)
def test_adapters_need_a_model(changes: dict[str, Any], message: str) -> None:
    """A setting for adapters that nothing could honour is an error of the start."""
    with pytest.raises(ConfigError, match=message):
        load_engine(Settings(runner="synthetic", **changes))


def test_the_engine_is_told_how_long_a_request_may_wait() -> None:
    """As set, or as the target for the first token has it."""
    assert load_engine(Settings(runner="synthetic", queue_timeout_s=7.0)).core.config.queue_timeout_s == 7.0
    assert load_engine(Settings(runner="synthetic", slo_ttft_s=10.0)).core.config.queue_timeout_s == 8.0


def test_a_cold_start_imports_what_it_needs() -> None:
    """What only some models or requests need is not imported with the assembly, and torch not before a model is."""
    code = "import json, sys, service.assembly, service.api.app; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    seldom_needed = {"torch", "ray", "huggingface_hub", "gguf", "transformers", "numpy"}
    assert not seldom_needed & set(json.loads(output))


def test_garbage_is_collected_again_after_a_start() -> None:
    """Also after one that failed."""
    load_engine(Settings(runner="synthetic"))
    assert gc.isenabled()
    with pytest.raises(ModelNotFoundError):
        load_engine(Settings(model="/nowhere"))
    assert gc.isenabled()
