"""Requests as OpenTelemetry spans: what is in them, whose trace they go on, and that they cost no request anything."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from queue import SimpleQueue

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.types import Message

from service.api.app import create_app
from service.api.tracing import OPERATIONS, RequestTracer, otlp_processor
from service.types import FinishReason, GenerateRequest, TokenEvent
from tests.api.fakes import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    MODEL_ID,
    Json,
    Script,
    ScriptedBackend,
    client_of,
    in_turn,
    make_state,
    say,
    timed,
    tokens,
    wait,
)

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
WALL_S = 1_700_000_000.0


async def spans_of(
    path: str, body: Json, *scripts: Script | Exception, headers: Mapping[str, str] | None = None
) -> list[ReadableSpan]:
    """What one request leaves; the clock advances one second per reading, and its 103 is `WALL_S`."""
    exporter = InMemorySpanExporter()
    ticks = count(100)
    tracer = RequestTracer(SimpleSpanProcessor(exporter), version="1.2.3", wall_clock=lambda: WALL_S)
    backend = ScriptedBackend(*scripts)
    async with client_of(backend, clock=lambda: float(next(ticks)), tracer=tracer) as client:
        await client.post(path, json=body, headers=headers)
    return list(exporter.get_finished_spans())


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


@pytest.mark.parametrize("stream", [False, True])
async def test_the_span_of_a_generation(stream: bool) -> None:
    """What was asked for, how it ended and what it used, in the words of the conventions, and no text at all."""
    body = {"prompt": "a secret", "stop": "stop!", "user": "someone", "max_tokens": 3, "temperature": 0.5, "seed": 7}
    *_, span = await spans_of(COMPLETIONS, body | {"stream": stream}, timed, headers={"x-request-id": "mine"})
    attributes = attributes_of(span)

    assert (span.name, span.kind) == (f"text_completion {MODEL_ID}", SpanKind.SERVER)
    assert span.status.status_code is StatusCode.UNSET
    assert str(attributes.pop("gen_ai.response.id")).startswith("cmpl-")
    assert attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "headcount",
        "gen_ai.request.model": MODEL_ID,
        "gen_ai.response.model": MODEL_ID,
        "gen_ai.request.stream": stream,
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.seed": 7,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "http.request.method": "POST",
        "http.route": COMPLETIONS,
        "http.response.status_code": 200,
        "headcount.request.id": "mine",
    }
    assert {"service.name": "headcount", "service.version": "1.2.3"}.items() <= span.resource.attributes.items()
    assert not [word for word in ("secret", "stop!", "someone") if word in span.to_json()]


async def test_the_stages_of_a_generation() -> None:
    """Queue, prefill and decode follow one another within the request, on the wall clock."""
    *stages, span = await spans_of(COMPLETIONS, {"prompt": "a", "max_tokens": 3}, timed)

    def seconds(each: ReadableSpan) -> tuple[float, float]:
        assert each.start_time is not None
        assert each.end_time is not None
        return each.start_time / 1e9 - WALL_S, each.end_time / 1e9 - WALL_S

    assert seconds(span) == (-3.0, 0.0)
    assert [(stage.name, *seconds(stage)) for stage in stages] == [
        ("queue", -3.0, -2.5),
        ("prefill", -2.5, -2.0),
        ("decode", -2.0, -1.0),
    ]
    assert [stage.parent for stage in stages] == [span.context] * 3


async def test_refused_requests_are_traced_too() -> None:
    """On each route that generates, whatever is the matter with the body."""
    paths = [path for path in OPERATIONS if path in create_app(make_state(ScriptedBackend())).openapi()["paths"]]
    assert {CHAT, COMPLETIONS} <= {*paths}
    for path in paths:
        (span,) = await spans_of(path, {"nonsense": True})
        assert span.name == OPERATIONS[path]
        assert attributes_of(span)["http.route"] == path


@pytest.mark.parametrize(
    ("headers", "trace_id"),
    [
        ({"traceparent": PARENT, "tracestate": "vendor=1"}, TRACE_ID),
        ({"traceparent": PARENT.replace("b7ad6b7169203331", "0" * 16)}, None),
        ({"traceparent": "00-nonsense"}, None),
        ({}, None),
    ],
)
async def test_whose_trace_it_is(headers: Mapping[str, str], trace_id: str | None) -> None:
    """The caller's where there is a sane `traceparent`, else a new one; its state is kept."""
    *_, span = await spans_of(CHAT, {"messages": MESSAGES}, say("hello"), headers=headers)

    assert span.name == f"chat {MODEL_ID}"
    if trace_id is None:
        assert span.parent is None
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" != TRACE_ID
    else:
        assert span.parent is not None
        assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (trace_id, "b7ad6b7169203331")
        assert dict(span.parent.trace_state) == {"vendor": "1"}


async def test_a_caller_that_does_not_sample() -> None:
    """Its decision holds: nothing is recorded."""
    assert await spans_of(CHAT, {"messages": MESSAGES}, say("a"), headers={"traceparent": f"{PARENT[:-1]}0"}) == []


def broken(request: GenerateRequest) -> Iterator[TokenEvent]:
    yield TokenEvent(request_id=request.request_id, finish_reason=FinishReason.ERROR, error="NaN in layer 3")


@pytest.mark.parametrize(
    ("body", "script", "status", "error", "is_fault"),
    [
        ({"prompt": "a", "stream": True}, in_turn(tokens(b"a"), broken), 200, "engine_error", True),
        ({"prompt": "a"}, broken, 500, "engine_error", True),
        ({"prompt": "a"}, RuntimeError("a bug"), 500, "internal_error", True),
        ({"prompt": "a", "n": 0}, say("a"), 400, "invalid_value", False),
    ],
)
async def test_what_went_wrong(body: Json, script: Script | Exception, status: int, error: str, is_fault: bool) -> None:
    """Every error has its label; the span's status tells our faults from the client's."""
    *_, span = await spans_of(COMPLETIONS, body, script)
    attributes = attributes_of(span)

    assert (attributes["http.response.status_code"], attributes["error.type"]) == (status, error)
    assert span.status.status_code is (StatusCode.ERROR if is_fault else StatusCode.UNSET)


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/nowhere"])
async def test_only_generations_are_traced(path: str) -> None:
    """Probes and listings leave no spans."""
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(SimpleSpanProcessor(exporter), version="1", wall_clock=lambda: WALL_S)
    async with client_of(ScriptedBackend(), tracer=tracer) as client:
        await client.get(path)
    assert exporter.get_finished_spans() == ()


async def test_a_client_that_left_is_in_its_span() -> None:
    """It says so, and that the choice was aborted."""
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(SimpleSpanProcessor(exporter), version="1", wall_clock=lambda: WALL_S)
    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": [], "query_string": b""}
    messages: list[Message] = [
        {"type": "http.request", "body": json.dumps({"prompt": "a"}).encode()},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        assert not message.get("body")

    await create_app(make_state(ScriptedBackend(wait), tracer=tracer))(scope, receive, send)
    (span,) = exporter.get_finished_spans()
    attributes = attributes_of(span)
    assert attributes["error.type"] == "client_disconnected"
    assert span.status.status_code is StatusCode.UNSET


class Collector(ThreadingHTTPServer):
    """A receiver of OTLP over HTTP; it answers once it `may_answer`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.received: SimpleQueue[tuple[str, ExportTraceServiceRequest]] = SimpleQueue()
        self.may_answer = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.put((self.path, ExportTraceServiceRequest.FromString(body)))
        self.server.may_answer.wait()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class has it
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            collector.may_answer.set()
            collector.shutdown()
            thread.join()


async def test_a_collector_gets_the_spans_and_holds_up_nobody() -> None:
    """Over real HTTP: requests are answered while the collector does not answer, and `flush` sends what there is."""
    with collecting() as collector:
        tracer = RequestTracer(otlp_processor(collector.url + "/"), version="1", wall_clock=lambda: WALL_S)
        async with client_of(ScriptedBackend(*[say("hello")] * 3), tracer=tracer) as client:
            answers = [
                await client.post(CHAT, json={"messages": MESSAGES}, headers={"traceparent": PARENT}) for _ in range(2)
            ]
            flushing = asyncio.create_task(asyncio.to_thread(tracer.flush))
            path, request = await asyncio.to_thread(collector.received.get)
            answers.append(await client.post(CHAT, json={"messages": MESSAGES}))
            collector.may_answer.set()
            await flushing
            await asyncio.to_thread(tracer.flush)
        _, later = await asyncio.to_thread(collector.received.get)

    assert [answer.status_code for answer in answers] == [200] * 3
    assert path == "/v1/traces"
    names = [
        [span.name for resource in each.resource_spans for scope in resource.scope_spans for span in scope.spans]
        for each in (request, later)
    ]
    assert [sorted(set(each)) for each in names] == [["chat acme/tiny", "decode"]] * 2
    assert [each.count("chat acme/tiny") for each in names] == [2, 1]


def test_nothing_of_it_is_loaded_unless_asked_for() -> None:
    """Without the setting neither the SDK nor the exporter is imported; FastAPI itself knows OpenTelemetry's API."""
    code = "import json, sys, service.api.app, service.config; print(json.dumps([*sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not [name for name in json.loads(output) if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
