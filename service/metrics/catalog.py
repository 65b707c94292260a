"""Every metric, declared once: name, type, labels, buckets, meaning. `python -m service.metrics.catalog` prints the
table.

Names, types and labels of the `vllm:` and `http_` families are those that dashboards, autoscalers and gateways
already query; histograms have more buckets at the low end, which queries do not notice. Families of our own begin
with `headcount_`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


# How the gauges of several replicas on a node become one; "live": those of dead processes do not count.
Across = Literal["livesum", "livemax"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. A counter's `name` ends in `_total`, as it is queried; `across` belongs to gauges, `buckets` to
    histograms.

    `counts_tokens_of_a_sequence`: buckets beyond the model's context length are left out. `of_fleet`: told once for the
    whole fleet, not by its replicas.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    across: Across = "livesum"
    buckets: tuple[float, ...] = ()
    counts_tokens_of_a_sequence: bool = False
    of_fleet: bool = False


ENGINE_LABELS = ("model_name", "engine")

TTFT_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_TIME_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_TIME_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP_TOKEN_BUCKETS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
SEQUENCE_TOKEN_BUCKETS = tuple(float(digit * 10**power) for power in range(7) for digit in (1, 2, 5))


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, (*ENGINE_LABELS, *labels))


def _gauge(name: str, text: str, *labels: str, across: Across = "livesum") -> Metric:
    return Metric(name, Kind.GAUGE, text, (*ENGINE_LABELS, *labels), across)


def _histogram(name: str, buckets: tuple[float, ...], text: str) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, ENGINE_LABELS, buckets=buckets)


def _sequence_tokens(name: str, text: str) -> Metric:
    return Metric(
        name,
        Kind.HISTOGRAM,
        text,
        ENGINE_LABELS,
        buckets=SEQUENCE_TOKEN_BUCKETS,
        counts_tokens_of_a_sequence=True,
    )


def _fleet_gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, labels, of_fleet=True)


def _fleet_counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, labels, of_fleet=True)


# The engine's state after its last step.
NUM_RUNNING = _gauge("vllm:num_requests_running", "Sequences that the engine is computing.")
NUM_WAITING = _gauge("vllm:num_requests_waiting", "Sequences that wait for a place in the engine.")
NUM_SWAPPED = _gauge("vllm:num_requests_swapped", "Always 0: sequences are recomputed, never swapped (old dashboards).")
KV_USAGE = _gauge(
    "vllm:kv_cache_usage_perc",
    "Share of KV blocks in use by running sequences, 0 to 1; the fullest replica of the node.",
    across="livemax",
)
KV_USAGE_ALIAS = _gauge("vllm:gpu_cache_usage_perc", "Old name of vllm:kv_cache_usage_perc.", across="livemax")
CACHE_CONFIG = _gauge(
    "vllm:cache_config_info",
    "Always 1; the KV cache of one replica is in the labels (num_gpu_blocks counts blocks on any device).",
    "block_size",
    "num_gpu_blocks",
    "cache_dtype",
    "enable_prefix_caching",
    across="livemax",
)
LORA_REQUESTS = _gauge(
    "vllm:lora_requests_info",
    "Unix time of the last step with these adapters (names with commas between): the latest series is in force.",
    "max_lora",
    "running_lora_adapters",
    "waiting_lora_adapters",
    across="livemax",
)
SLEEP_STATE = _gauge(
    "vllm:engine_sleep_state", "1 for `awake`: an engine that runs never sleeps.", "sleep_state", across="livemax"
)

# What the engine has done.
PROMPT_TOKENS = _counter(
    "vllm:prompt_tokens_total", "Prompt tokens taken in, computed or from the prefix cache: the sum over sources."
)
PROMPT_TOKENS_BY_SOURCE = _counter(
    "vllm:prompt_tokens_by_source_total",
    "Prompt tokens by `local_compute` (again after a preemption) or `local_cache_hit`.",
    "source",
)
PROMPT_TOKENS_CACHED = _counter("vllm:prompt_tokens_cached_total", "Prompt tokens that came from the prefix cache.")
GENERATION_TOKENS = _counter("vllm:generation_tokens_total", "Tokens generated.")
PREFIX_QUERIES = _counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.")
PREFIX_HITS = _counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.")
PREEMPTIONS = _counter("vllm:num_preemptions_total", "Sequences that gave their KV blocks back and waited again.")
DRAFTS = _counter("vllm:spec_decode_num_drafts_total", "Drafts: guesses of what a sequence's next tokens are.")
DRAFT_TOKENS = _counter("vllm:spec_decode_num_draft_tokens_total", "Tokens of drafts.")
ACCEPTED_TOKENS = _counter("vllm:spec_decode_num_accepted_tokens_total", "Tokens of drafts that were right.")
ACCEPTED_TOKENS_BY_POSITION = _counter(
    "vllm:spec_decode_num_accepted_tokens_per_pos_total", "The same by their place in the draft, from 0.", "position"
)
STEP_TOKENS = _histogram(
    "vllm:iteration_tokens_total", STEP_TOKEN_BUCKETS, "Tokens computed or generated in one step (a histogram)."
)
STEP_TIME = _histogram("headcount_step_duration_seconds", TOKEN_TIME_BUCKETS, "Duration of one engine step.")

# How long it took: one entry per token (TTFT, ITL) or per sequence that ended.
TTFT = _histogram("vllm:time_to_first_token_seconds", TTFT_BUCKETS, "TTFT: arrival to first token.")
ITL = _histogram("vllm:inter_token_latency_seconds", TOKEN_TIME_BUCKETS, "ITL: one gap between two tokens.")
TPOT = _histogram(
    "vllm:request_time_per_output_token_seconds", TOKEN_TIME_BUCKETS, "TPOT: mean gap between a sequence's tokens."
)
TPOT_ALIAS = _histogram(
    "vllm:time_per_output_token_seconds",
    TOKEN_TIME_BUCKETS,
    "Old name; holds vllm:request_time_per_output_token_seconds.",
)
E2E_TIME = _histogram("vllm:e2e_request_latency_seconds", REQUEST_TIME_BUCKETS, "E2E: arrival to last token.")
QUEUE_TIME = _histogram("vllm:request_queue_time_seconds", REQUEST_TIME_BUCKETS, "Arrival to first scheduled.")
PREFILL_TIME = _histogram("vllm:request_prefill_time_seconds", REQUEST_TIME_BUCKETS, "First scheduled to first token.")
DECODE_TIME = _histogram("vllm:request_decode_time_seconds", REQUEST_TIME_BUCKETS, "First token to last token.")
INFERENCE_TIME = _histogram(
    "vllm:request_inference_time_seconds", REQUEST_TIME_BUCKETS, "First scheduled to last token."
)

# What was asked for, and what became of it.
FINISHED = _counter(
    "vllm:request_success_total",
    "Choices that ended, by reason (`abort`: the client went away; `error`: our fault).",
    "finished_reason",
)
SLO_REQUESTS = _counter(
    "headcount_slo_requests_total",
    "Sequences that ended, by whether TTFT and TPOT were within slo_ttft_s and slo_tpot_s (`met`: true or false).",
    "met",
)
REJECTIONS = _counter(
    "vllm:admission_rejections_total", "Requests refused (429), by the limit that was reached.", "reason"
)
PROMPT_LENGTH = _sequence_tokens("vllm:request_prompt_tokens", "Prompt tokens of a sequence.")
OUTPUT_LENGTH = _sequence_tokens("vllm:request_generation_tokens", "Tokens generated for a sequence.")
COMPUTED_LENGTH = _sequence_tokens(
    "vllm:request_prefill_kv_computed_tokens", "Prompt tokens of a sequence that the prefix cache did not have."
)
LONGEST_CHOICE = _sequence_tokens(
    "vllm:request_max_num_generation_tokens", "Tokens generated for the longest choice of a request."
)
MAX_TOKENS = _sequence_tokens("vllm:request_params_max_tokens", "`max_tokens` of a request.")
NUM_CHOICES = _histogram("vllm:request_params_n", (1.0, 2.0, 5.0, 10.0, 20.0), "`n` of a request.")

# HTTP, as prometheus-fastapi-instrumentator names it. `handler` is a route, never a raw path.
HTTP_REQUESTS = Metric(
    "http_requests_total", Kind.COUNTER, "Requests by route, method and status class.", ("handler", "method", "status")
)
HTTP_DURATION = Metric(
    "http_request_duration_seconds",
    Kind.HISTOGRAM,
    "Time to the last byte of the answer, by route.",
    ("handler", "method"),
    buckets=(0.1, 0.5, 1.0),
)
HTTP_DURATION_HIGHR = Metric(
    "http_request_duration_highr_seconds",
    Kind.HISTOGRAM,
    "The same over all routes, in more buckets.",
    buckets=(
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5),
        *(10.0, 30.0, 60.0),
    ),
)
HTTP_REQUEST_SIZE = Metric("http_request_size_bytes", Kind.SUMMARY, "Bytes of request bodies.", ("handler",))
HTTP_RESPONSE_SIZE = Metric("http_response_size_bytes", Kind.SUMMARY, "Bytes of response bodies.", ("handler",))
HTTP_ERRORS = Metric(
    "headcount_request_errors_total", Kind.COUNTER, "Requests that failed, by the error's code.", ("handler", "code")
)
TENANT_REQUESTS = Metric(
    "headcount_tenant_requests_total",
    Kind.COUNTER,
    "Requests with a key, by `ok`, `limited` (the tenant's own limit), `refused`, `failed` or `gone` (the client).",
    ("tenant", "outcome"),
)
TENANT_TOKENS = Metric(
    "headcount_tenant_tokens_total", Kind.COUNTER, "Tokens of these requests: `prompt` or `output`.", ("tenant", "kind")
)
BUILD = Metric(
    "headcount_build_info", Kind.GAUGE, "Always 1; the version that runs is the label.", ("version",), "livemax"
)

# The fleet, as the autoscaler sees it.
DESIRED_REPLICAS = _fleet_gauge("headcount_desired_replicas", "Replicas that the last decision asked for.")
REPLICAS = _fleet_gauge("headcount_replicas", "Replicas by `state`: ready or starting.", "state")
MIN_REPLICAS = _fleet_gauge("headcount_min_replicas", "The lower bound, as set.")
MAX_REPLICAS = _fleet_gauge("headcount_max_replicas", "The upper bound, as set.")
LOST_REPLICAS = _fleet_gauge("headcount_lost_replicas", "Replicas that have been starting for over three cold starts.")
UNKNOWN_REPLICAS = _fleet_gauge("headcount_unknown_replicas", "Sources of statistics that are silent.")
WORK_REPLICAS = _fleet_gauge("headcount_work_replicas", "Work of the last minute, in replicas.")
NEED_REPLICAS = _fleet_gauge("headcount_need_replicas", "Replicas for it, its bursts and its growth over a cold start.")
FORECAST_ERROR = _fleet_gauge(
    "headcount_forecast_error_replicas", "Need now, less what was forecast for now one cold start ago."
)
QUEUE_TIME_OF_FLEET = _fleet_gauge("headcount_queue_seconds", "Prefill time that waits, per ready replica.")
HELD_REQUESTS = _fleet_gauge("headcount_held_requests", "Requests that wait for a first replica.")
COLD_START = _fleet_gauge("headcount_cold_start_seconds", "Cold start that the autoscaler reckons with.")
PRICE = _fleet_gauge("headcount_price_per_replica_hour", "What an hour of a replica costs, as set.")
COST_PER_HOUR = _fleet_gauge("headcount_cost_per_hour", "Ready and starting replicas at price_per_replica_hour.")
DECISION_AGE = _fleet_gauge("headcount_decision_age_seconds", "Time since the last decision.")
REPLICA_SECONDS = _fleet_counter("headcount_replica_seconds_total", "Sum of ready and starting replicas over time.")
SAVED_REPLICA_SECONDS = _fleet_counter(
    "headcount_saved_replica_seconds_total", "Replica-seconds that a static fleet of the largest size had cost more."
)
SCALE_EVENTS = _fleet_counter(
    "headcount_scale_events_total", "Decisions for more (`up`) or fewer (`down`) replicas than the last.", "direction"
)
DECISIONS = _fleet_counter(
    "headcount_decisions_total", "Decisions by `source`: brain, or fallback while it did not answer.", "source"
)

CATALOG: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def table() -> str:
    """The catalog as a Markdown table, for docs/metrics.md."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels) or 'none'} "
        f"| {metric.help} | {_note(metric)} |"
        for metric in CATALOG
    ]
    return "\n".join(["| name | type | labels | meaning | |", "|---|---|---|---|---|", *rows]) + "\n"


def _note(metric: Metric) -> str:
    if metric.of_fleet:
        return "of the whole fleet"
    if metric.kind is Kind.GAUGE:
        return "sum over replicas" if metric.across == "livesum" else "maximum over replicas"
    if metric.counts_tokens_of_a_sequence:
        return "buckets 1 2 5 10 20 50 … up to the context length"
    return f"buckets {' '.join(f'{bucket:g}' for bucket in metric.buckets)}" if metric.buckets else ""


if __name__ == "__main__":
    sys.stdout.write(table())
