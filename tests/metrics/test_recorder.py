"""What is recorded is what happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from service import __version__
from service.metrics.recorder import GenerationStats, Recorder
from service.types import FinishReason, SequenceTimings
from tests.metrics.worlds import HTTP as OVERLOADED
from tests.metrics.worlds import INFO, STEP, TENANT, TIMINGS

Value = Callable[..., float | None]
HTTP = replace(OVERLOADED, status=200, error=None)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def recorder(registry: CollectorRegistry) -> Recorder:
    return Recorder(INFO, registry)


@pytest.fixture
def engine_value(registry: CollectorRegistry) -> Value:
    """The value of a `vllm:` series; None when there is none."""

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"vllm:{name}", {"model_name": "tiny", "engine": "0", **labels})

    return value


def test_a_step_sets_gauges_and_adds_to_counters(recorder: Recorder, engine_value: Value) -> None:
    """Gauges show the last step, counters the sum of all."""
    recorder.on_step(STEP)
    recorder.on_step(replace(STEP, num_running=1, num_waiting=0, kv_usage=0.125))

    observed = {
        "num_requests_running": 1,
        "num_requests_waiting": 0,
        "num_requests_swapped": 0,
        "kv_cache_usage_perc": 0.125,
        "gpu_cache_usage_perc": 0.125,
        "prompt_tokens_total": 60,
        "prompt_tokens_cached_total": 32,
        "generation_tokens_total": 6,
        "num_preemptions_total": 2,
        "spec_decode_num_drafts_total": 4,
        "spec_decode_num_draft_tokens_total": 10,
        "spec_decode_num_accepted_tokens_total": 4,
        "prefix_cache_queries_total": 60,
        "prefix_cache_hits_total": 32,
        "iteration_tokens_total_sum": 34,
        "iteration_tokens_total_count": 2,
        "time_to_first_token_seconds_sum": 4.0,
        "inter_token_latency_seconds_sum": 1.5,
        "inter_token_latency_seconds_count": 4,
    }
    assert {name: engine_value(name) for name in observed} == observed
    by_position = [engine_value("spec_decode_num_accepted_tokens_per_pos_total", position=str(i)) for i in range(5)]
    assert by_position == [2, 2, 0, 0, None]
    assert engine_value("prompt_tokens_by_source_total", source="local_compute") == 28
    assert engine_value("prompt_tokens_by_source_total", source="local_cache_hit") == 32


def test_a_finished_sequence_is_cut_into_its_intervals(recorder: Recorder, engine_value: Value) -> None:
    """Queue, prefill, decode, inference, E2E and TPOT follow from four instants, by the formulas in docs/metrics.md."""
    recorder.on_step(STEP)

    sums = {
        "request_queue_time_seconds": 0.5,
        "request_prefill_time_seconds": 1.5,
        "request_decode_time_seconds": 2.0,
        "request_inference_time_seconds": 3.5,
        "e2e_request_latency_seconds": 4.0,
        "request_time_per_output_token_seconds": 0.5,
        "time_per_output_token_seconds": 0.5,
        "request_prompt_tokens": 30,
        "request_generation_tokens": 5,
        "request_prefill_kv_computed_tokens": 14,
    }
    assert {name: engine_value(f"{name}_sum") for name in sums} == sums
    assert {engine_value(f"{name}_count") for name in sums} == {1}


@pytest.mark.parametrize(
    ("timings", "observed"),
    [
        (SequenceTimings(arrival_at=1.0, num_prompt_tokens=3), set()),
        (replace(TIMINGS, first_token_at=None, last_token_at=None, num_output_tokens=0), {"queue"}),
        (replace(TIMINGS, last_token_at=102.0, num_output_tokens=1), {"queue", "decode", "e2e"}),
        (TIMINGS, {"queue", "decode", "e2e", "tpot"}),
    ],
    ids=["never-scheduled", "no-token", "one-token", "many"],
)
def test_what_never_happened_is_not_observed(
    recorder: Recorder, engine_value: Value, timings: SequenceTimings, observed: set[str]
) -> None:
    """An interval without its end is unknown, not zero; one token has no gap."""
    recorder.on_step(replace(STEP, finished=((FinishReason.ABORT, timings),)))

    names = {
        "queue": "request_queue_time_seconds",
        "decode": "request_decode_time_seconds",
        "e2e": "e2e_request_latency_seconds",
        "tpot": "request_time_per_output_token_seconds",
    }
    assert {key for key, name in names.items() if engine_value(f"{name}_count")} == observed


def test_a_step_that_computes_nothing_is_not_an_iteration(recorder: Recorder, engine_value: Value) -> None:
    """A step that only aborts updates the gauges and no histogram of steps."""
    recorder.on_step(replace(STEP, num_running=0, num_prompt_tokens=0, num_output_tokens=0, ttft_s=(), itl_s=()))

    assert engine_value("num_requests_running") == 0
    assert engine_value("iteration_tokens_total_count") == 0


def test_a_generation_counts_each_choice_by_its_reason(recorder: Recorder, engine_value: Value) -> None:
    """Reasons are counted per choice, parameters once per request."""
    reasons = (FinishReason.STOP, FinishReason.STOP, FinishReason.LENGTH)
    recorder.on_generation(GenerationStats(n=3, max_tokens=50, finish_reasons=reasons, longest_output_tokens=50))

    counts = {
        reason.value: engine_value("request_success_total", finished_reason=reason.value) for reason in FinishReason
    }
    assert counts == {"stop": 2, "length": 1, "abort": 0, "error": 0, "timeout": 0}
    assert engine_value("request_params_n_sum") == 3
    assert engine_value("request_params_max_tokens_sum") == 50
    assert engine_value("request_max_num_generation_tokens_sum") == 50


def test_an_http_request_is_counted_by_route_method_and_status_class(
    recorder: Recorder, registry: CollectorRegistry
) -> None:
    """Labels are the route, a known method and 2xx to 5xx: what a client makes up adds no series."""
    recorder.on_request(HTTP)
    recorder.on_request(replace(HTTP, method="BREW", status=405, error="method_not_allowed"))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"handler": HTTP.handler, **labels})

    assert value("http_requests_total", method="POST", status="2xx") == 1
    assert value("http_requests_total", method="other", status="4xx") == 1
    assert value("http_request_duration_seconds_sum", method="POST") == 0.3
    assert value("http_request_size_bytes_sum") == 20
    assert value("http_response_size_bytes_sum") == 40
    assert value("headcount_request_errors_total", code="method_not_allowed") == 1
    assert registry.get_sample_value("http_request_duration_highr_seconds_count") == 2


def test_a_refusal_because_of_overload_is_counted_as_one(recorder: Recorder, engine_value: Value) -> None:
    """429 from a full queue is an admission rejection, one from the limit of a tenant is not."""
    recorder.on_request(OVERLOADED)
    recorder.on_request(replace(HTTP, status=400, error="invalid_value"))
    recorder.on_request(replace(OVERLOADED, is_limited=True))

    assert engine_value("admission_rejections_total", reason="max_num_queued_reqs") == 1


def test_what_a_tenant_uses_is_counted_by_its_name(recorder: Recorder, registry: CollectorRegistry) -> None:
    """Requests by how they ended, tokens by where they stood."""
    recorder.on_tenant(TENANT)
    recorder.on_tenant(replace(TENANT, outcome="limited", num_prompt_tokens=0, num_output_tokens=0))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"headcount_tenant_{name}_total", {"tenant": "alice", **labels})

    assert (value("requests", outcome="ok"), value("requests", outcome="limited")) == (1, 1)
    assert (value("tokens", kind="prompt"), value("tokens", kind="output")) == (30, 5)


def test_the_replica_describes_itself(recorder: Recorder, registry: CollectorRegistry, engine_value: Value) -> None:
    """The cache's size, the state and the version can be read before the first request."""
    cache = {"block_size": "16", "num_gpu_blocks": "64", "cache_dtype": "bfloat16", "enable_prefix_caching": "True"}

    assert engine_value("cache_config_info", **cache) == 1
    assert engine_value("engine_sleep_state", sleep_state="awake") == 1
    assert engine_value("engine_sleep_state", sleep_state="discard_all") == 0
    assert registry.get_sample_value("headcount_build_info", {"version": __version__}) == 1


def test_token_buckets_end_at_the_context_length(recorder: Recorder, engine_value: Value) -> None:
    """A model of 4096 tokens has a bucket for 2000 and none for 5000."""
    assert engine_value("request_prompt_tokens_bucket", le="2000.0") == 0
    assert engine_value("request_prompt_tokens_bucket", le="5000.0") is None


def test_adapters_in_use(registry: CollectorRegistry, engine_value: Value) -> None:
    """The series with the latest time names the adapters of the last step."""
    now = [1000.0]
    recorder = Recorder(INFO, registry, wall_clock=lambda: now[0])
    recorder.on_step(replace(STEP, running_adapters=frozenset({"sql", "chat"}), waiting_adapters=frozenset({"sql"})))
    now[0] = 1001.0
    recorder.on_step(STEP)

    def seen(running: str, waiting: str) -> float | None:
        labels = {"max_lora": "4", "running_lora_adapters": running, "waiting_lora_adapters": waiting}
        return engine_value("lora_requests_info", **labels)

    assert seen("chat,sql", "sql") == 1000.0
    assert seen("", "") == 1001.0


def test_a_replica_without_adapters_does_not_tell_of_them(registry: CollectorRegistry) -> None:
    """A series that nothing sets would look like an idle server that has them."""
    Recorder(replace(INFO, max_loras=0), registry).on_step(STEP)
    found = [sample for family in registry.collect() for sample in family.samples if "lora" in sample.name]
    assert found == []
