"""Structured output and tools with the default model and the real engine, over HTTP in process."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import torch

from service.api.app import create_app
from service.engine.config import EngineConfig, LoopConfig
from service.engine.core import EngineCore
from service.engine.loop import EngineBackend
from service.engine.runner import ModelRunner
from service.model.loader import load_model
from service.text.tokenizer import Tokenizer, load_tokenizer
from tests.api.fakes import CHAT, COMPLETIONS, Json, ScriptedBackend, client_for, make_state
from tests.api.obedient import NOW, WEATHER
from tests.api.sse_bodies import added_up, essence, events_of

pytestmark = pytest.mark.integration

PERSON: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "hobbies": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["name", "age", "hobbies"],
    "additionalProperties": False,
}
AS_PERSON: Json = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}}


@pytest.fixture(scope="module")
def runner(default_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    torch.set_num_threads(1)
    model = load_model(default_model_path, dtype="auto", device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))
    tokenizer = load_tokenizer(default_model_path)
    return ModelRunner(model, num_blocks=200, max_model_len=1024, eos_token_ids=tokenizer.eos_token_ids)


@pytest.fixture(scope="module")
def tokenizer(default_model_path: Path) -> Tokenizer:
    return load_tokenizer(default_model_path)


@pytest.fixture
async def client(runner: ModelRunner, tokenizer: Tokenizer) -> AsyncIterator[httpx.AsyncClient]:
    core = EngineCore(runner, EngineConfig(max_num_seqs=8, max_num_batched_tokens=256), time.monotonic)
    backend = EngineBackend(core, LoopConfig())
    backend.start()
    state = replace(make_state(ScriptedBackend(), tokenizer=tokenizer, clock=time.monotonic), backend=backend)
    try:
        async with client_for(create_app(state)) as client:
            client.timeout = httpx.Timeout(300.0)
            yield client
    finally:
        await asyncio.to_thread(backend.close, 60.0)


def ask(question: str, **fields: Any) -> Json:
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 120, **fields}


async def choices(client: httpx.AsyncClient, path: str, body: Json) -> list[Json]:
    answer = await client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    found: list[Json] = answer.json()["choices"]
    return found


async def test_json_follows_its_schema(client: httpx.AsyncClient) -> None:
    """Greedy and sampled, several choices, in a body and in a stream."""
    body = ask("Describe a person.", **AS_PERSON, n=2, temperature=1.0, seed=3)
    whole = await client.post(CHAT, json=body)
    stream = await client.post(CHAT, json={**body, "stream": True, "stream_options": {"include_usage": True}})
    added = added_up(events_of(stream))

    assert added["choices"] == essence(whole.json())["choices"]
    for choice in [*added["choices"], *(await choices(client, CHAT, ask("Describe a person.", **AS_PERSON)))]:
        assert choice["finish_reason"] == "stop"
        text = choice["text"] if "text" in choice else choice["message"]["content"]
        jsonschema.validate(json.loads(text), PERSON)


async def test_a_choice_and_an_expression(client: httpx.AsyncClient) -> None:
    """The model picks the right town, and writes a date as it is told."""
    capital: Json = {"prompt": "The capital of France is", "temperature": 0}
    date: Json = {"prompt": "The day of the moon landing is ", "max_tokens": 20, "temperature": 0}
    towns, pattern = [" Berlin", " Paris", " Rome"], r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    [chosen] = await choices(client, COMPLETIONS, {**capital, "structured_outputs": {"choice": towns}})
    [written] = await choices(client, COMPLETIONS, {**date, "structured_outputs": {"regex": pattern}})

    assert (chosen["text"], chosen["finish_reason"]) == (" Paris", "stop")
    assert re.fullmatch(pattern, written["text"])


@pytest.mark.parametrize(
    ("tool_choice", "names"),
    [
        ("required", {"get_weather", "now"}),
        ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"}),
    ],
)
async def test_a_tool_that_must_be_called_is(client: httpx.AsyncClient, tool_choice: Any, names: set[str]) -> None:
    """Though this model has never learned to."""
    body = ask("What is the weather in Paris?", tools=[WEATHER, NOW], tool_choice=tool_choice)
    [choice] = await choices(client, CHAT, {**body, "parallel_tool_calls": False})
    [call] = choice["message"]["tool_calls"]

    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] in names
    if call["function"]["name"] == "get_weather":
        jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER["function"]["parameters"])


async def test_greedy_json_is_the_same_alone_and_in_a_crowd(client: httpx.AsyncClient) -> None:
    """Beside others with other grammars and with none; the second time the prompt comes from the prefix cache."""
    watched = ask("Describe a person with a long name and many hobbies.", **AS_PERSON)
    alone = await choices(client, CHAT, watched)
    others = [
        ask("Describe a town.", response_format={"type": "json_object"}, max_tokens=40),
        ask("Say anything.", max_tokens=40),
        ask("Yes or no?", structured_outputs={"choice": ["yes", "no"]}),
    ]
    crowd = await asyncio.gather(*(choices(client, CHAT, body) for body in [*others, watched]))

    assert crowd[-1] == alone
