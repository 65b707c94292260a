"""The catalog keeps the names that dashboards query, and the documentation shows the catalog."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from service.metrics import catalog
from service.metrics.catalog import CATALOG, Kind

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
ENGINE = ("model_name", "engine")

# What stock dashboards, KEDA recipes and the Gateway API inference extension rely on: name, type, labels.
CONTRACT = [
    ("vllm:num_requests_running", "gauge", ENGINE),
    ("vllm:num_requests_waiting", "gauge", ENGINE),
    ("vllm:num_requests_swapped", "gauge", ENGINE),
    ("vllm:kv_cache_usage_perc", "gauge", ENGINE),
    ("vllm:gpu_cache_usage_perc", "gauge", ENGINE),
    (
        "vllm:cache_config_info",
        "gauge",
        (*ENGINE, "block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"),
    ),
    (
        "vllm:lora_requests_info",
        "gauge",
        (*ENGINE, "max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    ),
    ("vllm:engine_sleep_state", "gauge", (*ENGINE, "sleep_state")),
    ("vllm:prompt_tokens_total", "counter", ENGINE),
    ("vllm:generation_tokens_total", "counter", ENGINE),
    ("vllm:prompt_tokens_cached_total", "counter", ENGINE),
    ("vllm:prompt_tokens_by_source_total", "counter", (*ENGINE, "source")),
    ("vllm:request_success_total", "counter", (*ENGINE, "finished_reason")),
    ("vllm:num_preemptions_total", "counter", ENGINE),
    ("vllm:prefix_cache_queries_total", "counter", ENGINE),
    ("vllm:spec_decode_num_drafts_total", "counter", ENGINE),
    ("vllm:spec_decode_num_draft_tokens_total", "counter", ENGINE),
    ("vllm:spec_decode_num_accepted_tokens_total", "counter", ENGINE),
    ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "counter", (*ENGINE, "position")),
    ("vllm:prefix_cache_hits_total", "counter", ENGINE),
    ("vllm:admission_rejections_total", "counter", (*ENGINE, "reason")),
    ("vllm:iteration_tokens_total", "histogram", ENGINE),
    ("vllm:time_to_first_token_seconds", "histogram", ENGINE),
    ("vllm:inter_token_latency_seconds", "histogram", ENGINE),
    ("vllm:request_time_per_output_token_seconds", "histogram", ENGINE),
    ("vllm:time_per_output_token_seconds", "histogram", ENGINE),
    ("vllm:e2e_request_latency_seconds", "histogram", ENGINE),
    ("vllm:request_queue_time_seconds", "histogram", ENGINE),
    ("vllm:request_inference_time_seconds", "histogram", ENGINE),
    ("vllm:request_prefill_time_seconds", "histogram", ENGINE),
    ("vllm:request_decode_time_seconds", "histogram", ENGINE),
    ("vllm:request_prompt_tokens", "histogram", ENGINE),
    ("vllm:request_generation_tokens", "histogram", ENGINE),
    ("vllm:request_max_num_generation_tokens", "histogram", ENGINE),
    ("vllm:request_params_max_tokens", "histogram", ENGINE),
    ("vllm:request_prefill_kv_computed_tokens", "histogram", ENGINE),
    ("vllm:request_params_n", "histogram", ENGINE),
    ("http_requests_total", "counter", ("handler", "method", "status")),
    ("http_request_duration_seconds", "histogram", ("handler", "method")),
    ("http_request_duration_highr_seconds", "histogram", ()),
    ("http_request_size_bytes", "summary", ("handler",)),
    ("http_response_size_bytes", "summary", ("handler",)),
]
TOKEN_TIME = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST_TIME = (*(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680),)
BUCKETS = {
    "vllm:time_to_first_token_seconds": (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
        *(640, 2560),
    ),
    "vllm:inter_token_latency_seconds": TOKEN_TIME,
    "vllm:request_time_per_output_token_seconds": TOKEN_TIME,
    "vllm:time_per_output_token_seconds": TOKEN_TIME,
    "vllm:e2e_request_latency_seconds": REQUEST_TIME,
    "vllm:request_queue_time_seconds": REQUEST_TIME,
    "vllm:request_inference_time_seconds": REQUEST_TIME,
    "vllm:request_prefill_time_seconds": REQUEST_TIME,
    "vllm:request_decode_time_seconds": REQUEST_TIME,
    "vllm:iteration_tokens_total": (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    "vllm:request_prompt_tokens": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
    "vllm:request_params_n": (1, 2, 5, 10, 20),
}
BY_NAME = {metric.name: metric for metric in CATALOG}


def test_the_contract_is_kept_and_nothing_else_takes_its_names() -> None:
    """Every family outside our own prefix has the name, type and labels that others query; there are no others."""
    declared = [
        (metric.name, str(metric.kind), metric.labels) for metric in CATALOG if not metric.name.startswith("headcount_")
    ]

    assert sorted(declared) == sorted(CONTRACT)


@pytest.mark.parametrize("name", BUCKETS)
def test_buckets_only_add_to_those_known(name: str) -> None:
    """Each boundary that existing queries use is there, in order, beside finer ones."""
    buckets = BY_NAME[name].buckets

    assert set(BUCKETS[name]) <= set(buckets)
    assert sorted(set(buckets)) == list(buckets)


def test_every_metric_is_declared_once_and_explained() -> None:
    """Names are unique, counters end in _total, only histograms have buckets, every help text is a sentence."""
    assert len(BY_NAME) == len(CATALOG)
    for metric in CATALOG:
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets), metric.name
        assert metric.kind is not Kind.COUNTER or metric.name.endswith("_total"), metric.name
        assert re.fullmatch(r"[A-Zn`1].*\.", metric.help), metric.name
        assert "|" not in metric.help, metric.name


def test_the_documentation_shows_the_catalog() -> None:
    """docs/metrics.md is current: `python -m service.metrics.catalog` prints what stands between its markers."""
    shown = re.search(r"<!-- catalog -->\n(.*)<!-- /catalog -->", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)

    assert shown is not None
    assert shown[1] == catalog.table()


def test_the_module_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Run as a program, the catalog prints the table."""
    runpy.run_path(catalog.__file__, run_name="__main__")

    assert capsys.readouterr().out == catalog.table()
