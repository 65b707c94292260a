"""Fills the metrics of one replica.

`on_step` runs in the engine's thread after every step, `on_generation` and `on_request` in the event loop once per
request; each takes microseconds. Values live in this process, or in files that all replicas of a node share once
`service.metrics.multiprocess.configure` has run (before a Recorder is made).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from service import __version__
from service.autoscaling.slo import Slo
from service.errors import OverloadedError
from service.metrics import catalog
from service.metrics.catalog import Kind, Metric
from service.types import FinishReason, SequenceTimings, StepStats

ENGINE = "0"  # each replica has one engine
TenantOutcome = Literal["ok", "limited", "refused", "failed", "gone"]
_QUEUE_FULL = "max_num_queued_reqs"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaInfo:
    """What does not change while a replica runs. `num_blocks` and `block_size` (tokens) describe its KV cache;
    `max_loras` is 0 where no adapters are served, `num_speculative_tokens` where there are no drafts."""

    model_name: str
    max_model_len: int
    num_blocks: int
    block_size: int
    cache_dtype: str
    prefix_caching: bool
    max_loras: int = 0
    num_speculative_tokens: int = 0
    slo: Slo = field(default_factory=Slo)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """One generation request that was admitted and has ended; one finish reason per choice.

    A choice that a stop string ended is STOP, though the engine was told to abort it; one whose client went away is
    ABORT.
    """

    n: int
    max_tokens: int
    finish_reasons: tuple[FinishReason, ...]
    longest_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpStats:
    """One HTTP request that has ended. `handler` is the route's path; `error` is the code in the error envelope, if
    any; `is_limited` that it was refused by a limit of its tenant, not by a full queue.
    """

    handler: str
    method: str
    status: int
    duration_s: float
    request_bytes: int
    response_bytes: int
    error: str | None = None
    is_limited: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantStats:
    """One request with a key that has ended; outcomes are those of the catalog."""

    tenant: str
    outcome: TenantOutcome
    num_prompt_tokens: int
    num_output_tokens: int


class Recorder:
    """The metrics of one process, registered in `registry`. Make one per process; all families exist at once.

    `info` is None where there is no engine: then the families of HTTP exist alone.
    """

    def __init__(
        self, info: ReplicaInfo | None, registry: CollectorRegistry, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._max_loras = 0 if info is None else info.max_loras
        self._wall_clock = wall_clock
        self._slo = Slo() if info is None else info.slo
        self._engine_labels = ("" if info is None else info.model_name, ENGINE)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        self._summaries: dict[str, Summary] = {}
        for metric in catalog.CATALOG:
            is_of_engine = metric.labels[:2] == catalog.ENGINE_LABELS
            if not metric.of_fleet and (info is not None or not is_of_engine):
                self._declare(metric, registry, 0 if info is None else info.max_model_len)
        self._gauges[catalog.BUILD.name].labels(__version__).set(1)
        if info is not None:
            self._start_at_zero(info)

    def on_step(self, stats: StepStats) -> None:
        """Take in one engine step."""
        self._set(catalog.NUM_RUNNING, stats.num_running)
        self._set(catalog.NUM_WAITING, stats.num_waiting)
        self._set(catalog.KV_USAGE, stats.kv_usage)
        self._set(catalog.KV_USAGE_ALIAS, stats.kv_usage)
        self._count(catalog.PROMPT_TOKENS, stats.num_prompt_tokens + stats.num_prefix_hit_tokens)
        self._count(catalog.PROMPT_TOKENS_BY_SOURCE, stats.num_prompt_tokens, "local_compute")
        self._count(catalog.PROMPT_TOKENS_BY_SOURCE, stats.num_prefix_hit_tokens, "local_cache_hit")
        self._count(catalog.PROMPT_TOKENS_CACHED, stats.num_prefix_hit_tokens)
        self._count(catalog.PREFIX_QUERIES, stats.num_prefix_queried_tokens)
        self._count(catalog.PREFIX_HITS, stats.num_prefix_hit_tokens)
        self._count(catalog.GENERATION_TOKENS, stats.num_output_tokens)
        self._count(catalog.PREEMPTIONS, stats.num_preemptions)
        for num_drafted, num_accepted in stats.drafts:
            self._count_draft(num_drafted, num_accepted)
        num_tokens = stats.num_prompt_tokens + stats.num_output_tokens
        if num_tokens:  # a step that only aborted computed nothing
            self._observe(catalog.STEP_TOKENS, num_tokens)
            self._observe(catalog.STEP_TIME, stats.duration_s)
        self._observe(catalog.TTFT, *stats.ttft_s)
        self._observe(catalog.ITL, *stats.itl_s)
        if self._max_loras:
            used = (",".join(sorted(names)) for names in (stats.running_adapters, stats.waiting_adapters))
            self._set(catalog.LORA_REQUESTS, self._wall_clock(), str(self._max_loras), *used)
        for _, timings in stats.finished:
            self._observe_sequence(timings)

    def on_generation(self, stats: GenerationStats) -> None:
        """Take in one generation request that has ended, however it ended."""
        for reason in stats.finish_reasons:
            self._count(catalog.FINISHED, 1, reason.value)
        self._observe(catalog.NUM_CHOICES, stats.n)
        self._observe(catalog.MAX_TOKENS, stats.max_tokens)
        self._observe(catalog.LONGEST_CHOICE, stats.longest_output_tokens)

    def on_request(self, stats: HttpStats) -> None:
        """Take in one HTTP request that has ended, of any kind."""
        # Clients invent methods; labels must stay few.
        method = stats.method if stats.method in _METHODS else "other"
        status = f"{stats.status // 100}xx"
        self._counters[catalog.HTTP_REQUESTS.name].labels(stats.handler, method, status).inc()
        self._histograms[catalog.HTTP_DURATION.name].labels(stats.handler, method).observe(stats.duration_s)
        self._histograms[catalog.HTTP_DURATION_HIGHR.name].observe(stats.duration_s)
        self._summaries[catalog.HTTP_REQUEST_SIZE.name].labels(stats.handler).observe(stats.request_bytes)
        self._summaries[catalog.HTTP_RESPONSE_SIZE.name].labels(stats.handler).observe(stats.response_bytes)
        if stats.error is not None:
            self._counters[catalog.HTTP_ERRORS.name].labels(stats.handler, stats.error).inc()
        if stats.error == OverloadedError.label and not stats.is_limited:
            self._count(catalog.REJECTIONS, 1, _QUEUE_FULL)

    def on_tenant(self, stats: TenantStats) -> None:
        """Take in what a tenant has used."""
        self._counters[catalog.TENANT_REQUESTS.name].labels(stats.tenant, stats.outcome).inc()
        tokens = self._counters[catalog.TENANT_TOKENS.name]
        tokens.labels(stats.tenant, "prompt").inc(stats.num_prompt_tokens)
        tokens.labels(stats.tenant, "output").inc(stats.num_output_tokens)

    def _declare(self, metric: Metric, registry: CollectorRegistry, max_model_len: int) -> None:
        name, text, labels = metric.name, metric.help, metric.labels
        match metric.kind:
            case Kind.COUNTER:
                self._counters[name] = Counter(name, text, labels, registry=registry)
            case Kind.GAUGE:
                self._gauges[name] = Gauge(name, text, labels, registry=registry, multiprocess_mode=metric.across)
            case Kind.HISTOGRAM:
                limit = max_model_len if metric.counts_tokens_of_a_sequence else math.inf
                buckets = [bucket for bucket in metric.buckets if bucket <= limit]
                self._histograms[name] = Histogram(name, text, labels, registry=registry, buckets=buckets)
            case Kind.SUMMARY:
                self._summaries[name] = Summary(name, text, labels, registry=registry)

    def _start_at_zero(self, info: ReplicaInfo) -> None:
        """A series that appears with its first event has no rate for it: those whose labels are known begin at zero."""
        for metric in catalog.CATALOG:
            if metric.labels == catalog.ENGINE_LABELS:
                families = {**self._counters, **self._gauges, **self._histograms}
                families[metric.name].labels(*self._engine_labels)
        for source in ("local_compute", "local_cache_hit"):
            self._count(catalog.PROMPT_TOKENS_BY_SOURCE, 0, source)
        for reason in FinishReason:
            self._count(catalog.FINISHED, 0, reason.value)
        self._count(catalog.REJECTIONS, 0, _QUEUE_FULL)
        for state in ("awake", "weights_offloaded", "discard_all"):
            self._set(catalog.SLEEP_STATE, state == "awake", state)
        cache = (str(info.block_size), str(info.num_blocks), info.cache_dtype, str(info.prefix_caching))
        self._set(catalog.CACHE_CONFIG, 1, *cache)
        for position in range(info.num_speculative_tokens):
            self._count(catalog.ACCEPTED_TOKENS_BY_POSITION, 0, str(position))
        for met in ("true", "false"):
            self._count(catalog.SLO_REQUESTS, 0, met)

    def _count_draft(self, num_drafted: int, num_accepted: int) -> None:
        self._count(catalog.DRAFTS, 1)
        self._count(catalog.DRAFT_TOKENS, num_drafted)
        self._count(catalog.ACCEPTED_TOKENS, num_accepted)
        for position in range(num_accepted):
            self._count(catalog.ACCEPTED_TOKENS_BY_POSITION, 1, str(position))

    def _observe_sequence(self, timings: SequenceTimings) -> None:
        """What a sequence never reached is not observed: it is unknown, not zero."""
        if timings.first_token_at is not None:
            self._count(catalog.SLO_REQUESTS, 1, str(self._slo.is_met(timings)).lower())
        self._observe(catalog.PROMPT_LENGTH, timings.num_prompt_tokens)
        self._observe(catalog.OUTPUT_LENGTH, timings.num_output_tokens)
        self._observe(catalog.COMPUTED_LENGTH, timings.num_prompt_tokens - timings.num_prefix_hit_tokens)
        if timings.scheduled_at is None:
            return
        self._observe(catalog.QUEUE_TIME, timings.scheduled_at - timings.arrival_at)
        if timings.first_token_at is None or timings.last_token_at is None:
            return
        decode_s = timings.last_token_at - timings.first_token_at
        self._observe(catalog.PREFILL_TIME, timings.first_token_at - timings.scheduled_at)
        self._observe(catalog.DECODE_TIME, decode_s)
        self._observe(catalog.INFERENCE_TIME, timings.last_token_at - timings.scheduled_at)
        self._observe(catalog.E2E_TIME, timings.last_token_at - timings.arrival_at)
        if timings.num_output_tokens > 1:
            tpot_s = decode_s / (timings.num_output_tokens - 1)
            self._observe(catalog.TPOT, tpot_s)
            self._observe(catalog.TPOT_ALIAS, tpot_s)

    def _count(self, metric: Metric, amount: int, *labels: str) -> None:
        self._counters[metric.name].labels(*self._engine_labels, *labels).inc(amount)

    def _set(self, metric: Metric, value: float, *labels: str) -> None:
        self._gauges[metric.name].labels(*self._engine_labels, *labels).set(value)

    def _observe(self, metric: Metric, *values: float) -> None:
        child = self._histograms[metric.name].labels(*self._engine_labels)
        for value in values:
            child.observe(value)
