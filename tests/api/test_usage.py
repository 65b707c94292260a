"""What a tenant uses: told in headers, held to its limits, counted and logged by its name."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from service.api.logs import REQUEST_LOGGER, JsonFormatter
from service.api.tracing import RequestTracer
from service.errors import OverloadedError
from service.metrics.recorder import Recorder
from tests.api.fakes import CHAT, COMPLETIONS, INFO, ScriptedBackend, say, tokens, wait
from tests.api.tenants import ASK, client, entry, hash_of, headers_of, key_of
from tests.api.test_attention import Source as AttentionSource
from tests.api.test_embeddings import Source as EmbeddingSource

ANTHROPIC = "/v1/messages"


async def test_limits_are_told_and_kept(tmp_path: Path) -> None:
    """The headers of an answer, and 429 when a limit is reached, in each dialect's way; a GET costs nothing."""
    alice = entry("alice", "requests_per_minute = 2\ntokens_per_minute = 1000")
    async with client(tmp_path, alice) as http:
        headers = headers_of("alice")
        first = await http.post(CHAT, json=ASK, headers=headers)
        models = await http.get("/v1/models", headers=headers)
        await http.post("/tokenize", json={"prompt": "a"}, headers=headers)
        openai = await http.post(CHAT, json=ASK, headers=headers)
        anthropic = await http.post(ANTHROPIC, json=ASK, headers=headers)

    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) < 1000
    assert "x-ratelimit-limit-requests" not in models.headers
    error = openai.json()["error"]
    assert (openai.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "rate_limit_error")
    assert "2 requests per minute" in error["message"]
    assert (openai.headers["retry-after"], openai.headers["retry-after-ms"]) == ("30", "30000")
    assert openai.headers["x-ratelimit-remaining-requests"] == "0"
    assert openai.headers["x-ratelimit-reset-requests"] == "1m0s"
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (429, "rate_limit_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_are_reserved_before_and_counted_after(tmp_path: Path, stream: bool) -> None:
    """The most that a request may need is asked for, and what it used is what counts: 6 of prompt (it begins with a
    token of its own), and 3 of output, which ends with one."""
    body = {"prompt": "hello", "max_tokens": 50, "stream": stream}
    async with client(tmp_path, entry("alice", "tokens_per_minute = 60"), backend=ScriptedBackend(say("Hi"))) as http:
        headers = headers_of("alice")
        first = await http.post(COMPLETIONS, json=body, headers=headers)
        second = await http.post("/tokenize", json={"prompt": "a"}, headers=headers)
        refused = await http.post(COMPLETIONS, json=body, headers=headers)
        smaller = await http.post(COMPLETIONS, json={**body, "max_tokens": 45}, headers=headers)

    assert first.headers["x-ratelimit-remaining-tokens"] == str(60 - 56)
    assert second.headers["x-ratelimit-remaining-tokens"] == str(60 - 9)
    assert refused.status_code == 429
    assert "this request has 56" in refused.json()["error"]["message"]
    assert smaller.status_code == 200


async def test_what_the_server_refuses_costs_no_tokens(tmp_path: Path) -> None:
    """A full queue is not the tenant's doing: it is counted as refused, whatever the API calls it."""
    backend, registry = ScriptedBackend(OverloadedError("Full.", retry_after_s=1.0)), CollectorRegistry()
    changes = {"backend": backend, "recorder": Recorder(INFO, registry)}
    async with client(tmp_path, entry("alice", "tokens_per_minute = 100"), **changes) as http:
        await http.post(ANTHROPIC, json=ASK, headers=headers_of("alice"))
        refused = await http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 90}, headers=headers_of("alice"))
        after = await http.post("/tokenize", json={"prompt": "a"}, headers=headers_of("alice"))

    assert refused.status_code == 429
    assert "Full." in refused.json()["error"]["message"]
    assert after.headers["x-ratelimit-remaining-tokens"] == "100"
    labels = {"tenant": "alice", "outcome": "refused"}
    assert registry.get_sample_value("headcount_tenant_requests_total", labels) == 2


async def test_texts_that_become_vectors_cost_their_tokens(tmp_path: Path) -> None:
    """And those that are looked into."""
    limits = entry("alice", "tokens_per_minute = 100")
    async with client(tmp_path, limits, embedding=EmbeddingSource(), attention=AttentionSource()) as http:
        vectors = await http.post("/v1/embeddings", json={"input": [[1, 2], [3]]}, headers=headers_of("alice"))
        heads = await http.post("/v1/attention", json={"prompt": [1, 2, 3, 4]}, headers=headers_of("alice"))

    assert (vectors.status_code, vectors.headers["x-ratelimit-remaining-tokens"]) == (200, "97")
    assert (heads.status_code, heads.headers["x-ratelimit-remaining-tokens"]) == (200, "93")


async def test_a_place_is_free_again_however_a_request_ends(tmp_path: Path) -> None:
    """With an answer, with a mistake, or when its client goes while it is generated."""
    backend = ScriptedBackend(say("Hi"), wait, say("Hi"))
    async with client(tmp_path, entry("alice", "concurrent = 1"), backend=backend) as http:
        ask = partial(http.post, COMPLETIONS, headers=headers_of("alice"))
        assert (await ask(json={"prompt": "a"})).status_code == 200
        assert (await ask(json={})).status_code == 400
        running = asyncio.create_task(ask(json={"prompt": "a"}))
        await backend.until(lambda: len(backend.requests) == 2)
        crowded = await ask(json={"prompt": "a"})
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (await ask(json={"prompt": "a"})).status_code == 200

    assert (crowded.status_code, crowded.headers["retry-after"]) == (429, "1")


async def test_usage_is_counted_and_logged_by_tenant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the name in the file; who has no key is nobody."""
    caplog.set_level(logging.INFO, logger=REQUEST_LOGGER)
    registry = CollectorRegistry()
    alice = entry("alice", "requests_per_minute = 3")
    backend = ScriptedBackend(say("Hi"), tokens(b"x"))
    async with client(tmp_path, alice, backend=backend, recorder=Recorder(INFO, registry)) as http:
        ask = partial(http.post, COMPLETIONS, headers=headers_of("alice"))
        for body in ({"prompt": "hello"}, {"prompt": "hello", "stream": True}, {}, {"prompt": "hello"}):
            await ask(json=body)
        await http.post(COMPLETIONS, json={"prompt": "hello"})

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"headcount_tenant_{name}_total", {"tenant": "alice", **labels})

    assert [value("requests", outcome=name) for name in ("ok", "failed", "refused", "limited")] == [1, 1, 1, 1]
    assert (value("tokens", kind="prompt"), value("tokens", kind="output")) == (12, 4)
    assert value_of_rejections(registry) == 0
    lines = [record.__dict__["fields"] for record in caplog.records if record.name == REQUEST_LOGGER]
    assert [line.get("tenant") for line in lines] == ["alice"] * 4 + [None]


def value_of_rejections(registry: CollectorRegistry) -> float | None:
    labels = {"model_name": INFO.model_name, "engine": "0", "reason": "max_num_queued_reqs"}
    return registry.get_sample_value("vllm:admission_rejections_total", labels)


async def test_a_key_is_in_no_answer_log_metric_or_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens to its request: answered, refused, broken within. Nor is its hash, nor are wrong keys."""
    caplog.set_level(logging.DEBUG)
    registry = CollectorRegistry()
    recorder = Recorder(INFO, registry)
    said = ""
    scripts = (say("Hello"), tokens(b"x"), RuntimeError("broken within"))
    spans = InMemorySpanExporter()
    tracer = RequestTracer(SimpleSpanProcessor(spans), version="1.2.3", wall_clock=lambda: 1.7e9)
    changes = {"backend": ScriptedBackend(*scripts), "recorder": recorder, "tracer": tracer}
    async with client(tmp_path, entry("alice"), **changes) as http:
        for headers in (headers_of("alice"), {"x-api-key": key_of("alice")}, headers_of("mallory")):
            for body in (ASK, {**ASK, "stream": True}, {"messages": "?"}, ASK):
                answer = await http.post(CHAT, json=body, headers=headers)
                said += answer.text + str(answer.headers)
    said += "".join(map(JsonFormatter().format, caplog.records)) + generate_latest(registry).decode()
    said += "".join(span.to_json() for span in spans.get_finished_spans())

    assert "broken within" in said
    assert '"headcount.tenant": "alice"' in said
    for secret in ("key-of-", hash_of(key_of("alice"))):
        assert secret not in said
