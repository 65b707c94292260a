"""Finished requests as OpenTelemetry spans, sent to a collector by OTLP over HTTP. Imported only where it is asked for.

One SERVER span per generation request, `chat <model>`, with the attributes of the GenAI and HTTP conventions and the
children `queue`, `prefill` and `decode`. It goes on the trace of the `traceparent` that came with the request. W3C
knows no such header for answers, and the service itself asks nobody, so none goes out; the trace's id is in the log.

Spans hold no text: neither prompts nor outputs nor stop strings. They are made when a request has ended, from what was
measured for the log, and sent from a thread of their own: a collector that is slow or gone costs spans, never time.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ · https://www.w3.org/TR/trace-context/
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import Scope

from service.api.logs import RequestRecord, Tally
from service.api.state import Clock
from service.types import FinishReason, GenerateRequest

# What is traced, and what the conventions call it.
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
PROVIDER = "headcount"
CLIENT_FAULTS = range(400, 500)
EXPORT_TIMEOUT_S = 5.0  # for one batch, with its retries
FLUSH_TIMEOUT_S = 5.0
NANOSECONDS = 1_000_000_000

Attributes = dict[str, AttributeValue]


def otlp_processor(endpoint: str) -> SpanProcessor:
    """Sends spans to the collector at `endpoint`, the base of its OTLP/HTTP paths, in batches."""
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_TIMEOUT_S)
    return BatchSpanProcessor(exporter)


class RequestTracer:
    """Makes the spans of finished requests. `wall_clock` gives Unix time.

    The SDK's own variables hold for the rest, such as OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS.
    """

    def __init__(self, processor: SpanProcessor, *, version: str, wall_clock: Clock) -> None:
        resource = Resource(
            {"service.name": "headcount", "service.version": version, "service.instance.id": str(uuid.uuid4())}
        )
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("headcount", version)
        self._propagator = TraceContextTextMapPropagator()
        self._wall_clock = wall_clock

    def on_request(self, scope: Scope, record: RequestRecord, ended_at: float) -> None:
        """Trace `record`, which has just ended (monotonic seconds), and tell it the id of its trace."""
        operation = OPERATIONS.get(record.endpoint)
        if operation is None:
            return
        epoch_s = self._wall_clock() - ended_at

        def unix_ns(instant: float) -> int:
            return int((epoch_s + instant) * NANOSECONDS)

        span = self._tracer.start_span(
            operation if record.model is None else f"{operation} {record.model}",
            context=self._parent(scope),
            kind=SpanKind.SERVER,
            attributes=_attributes(operation, record),
            start_time=unix_ns(record.started_at),
        )
        # An answer that began well can still fail; what the client did wrong is no fault of the server's.
        if record.error is not None and record.status not in CLIENT_FAULTS:
            span.set_status(StatusCode.ERROR, record.error)
        for name, start, end in _stages(record.tally):
            child = self._tracer.start_span(name, context=set_span_in_context(span), start_time=unix_ns(start))
            child.end(unix_ns(end))
        span.end(unix_ns(ended_at))
        record.trace_id = format_trace_id(span.get_span_context().trace_id)

    def flush(self) -> None:
        """Send what has not been sent, for as long as FLUSH_TIMEOUT_S; what a collector has not taken then is lost."""
        # The SDK's own time-out is not kept to, and its lock is held while a batch is under way.
        sender = threading.Thread(target=self._provider.force_flush, name="trace-flush", daemon=True)
        sender.start()
        sender.join(FLUSH_TIMEOUT_S)

    def _parent(self, scope: Scope) -> Context:
        headers = Headers(scope=scope)
        found = {name: ",".join(headers.getlist(name)) for name in ("traceparent", "tracestate") if name in headers}
        return self._propagator.extract(found, context=Context())


def _attributes(operation: str, record: RequestRecord) -> Attributes:
    known: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": record.model,
        "gen_ai.response.model": record.model,
        "gen_ai.request.stream": record.is_stream,
        "http.request.method": record.method,
        "http.route": record.endpoint,
        "http.response.status_code": record.status,
        "headcount.request.id": record.request_id,
        "headcount.tenant": None if record.tenant is None else record.tenant.name,
        "error.type": "client_disconnected" if record.client_disconnected else record.error,
    }
    if record.request is not None:
        known |= _asked(record.request)
    if record.tally is not None:
        known |= _used(record.tally, record.outcomes())
    return {name: value for name, value in known.items() if value is not None}


def _asked(request: GenerateRequest) -> Mapping[str, AttributeValue | None]:
    sampling = request.sampling
    return {
        "gen_ai.response.id": request.request_id,
        "gen_ai.request.choice.count": request.n,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
    }


def _used(tally: Tally, outcomes: tuple[FinishReason, ...]) -> Mapping[str, AttributeValue | None]:
    return {
        "gen_ai.response.finish_reasons": tuple(reason.value for reason in outcomes) or None,
        "gen_ai.usage.input_tokens": tally.num_prompt_tokens,
        "gen_ai.usage.output_tokens": tally.num_output_tokens,
        "gen_ai.usage.cache_read.input_tokens": tally.num_cached_tokens,
    }


def _stages(tally: Tally | None) -> list[tuple[str, float, float]]:
    """Name, start and end of each stage that the request has been through, for all its choices together."""
    if tally is None:
        return []
    ends = (tally.arrival_at, tally.scheduled_at, tally.first_token_at, tally.last_token_at)
    names = ("queue", "prefill", "decode")
    pairs = zip(names, ends, ends[1:], strict=False)
    return [(name, start, end) for name, start, end in pairs if start is not None and end is not None]
