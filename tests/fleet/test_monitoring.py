"""A real Prometheus looks at the real service: dashboards show data, counters only grow, an overload rings."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Iterator

import openai
import pytest

from service.bench.serving import command_of, descendants
from service.metrics.catalog import FORECAST_ERROR, Kind
from service.metrics.grafana.boards import dashboards
from tests.deploy.promql import SERIES
from tests.fleet.prometheus_process import Prometheus, running_prometheus
from tests.fleet.server_process import STOP_DEADLINE_S, ServerProcess, eventually

pytestmark = pytest.mark.cluster

# What Grafana puts in the place of its variables: here, a scrape each second.
VARIABLES = {"$namespace": ".*", "$model_name": ".*", "$__rate_interval": "5s", "$__range": "1m"}
# Nobody measures it yet.
EMPTY = {FORECAST_ERROR.name}

# What the public dashboards for vLLM ask, panel by panel, in our words.
VLLM_HISTOGRAMS = (
    "time_to_first_token_seconds",
    "time_per_output_token_seconds",
    "request_time_per_output_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_inference_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "request_max_num_generation_tokens",
    "request_params_max_tokens",
    "request_params_n",
    "iteration_tokens_total",
)
VLLM_QUERIES = (
    *(f"histogram_quantile(0.99, sum by (le) (rate(vllm:{name}_bucket{{M}}[5s])))" for name in VLLM_HISTOGRAMS),
    *(f"rate(vllm:{name}_sum{{M}}[5s]) / rate(vllm:{name}_count{{M}}[5s])" for name in VLLM_HISTOGRAMS),
    "sum by (le) (increase(vllm:request_prompt_tokens_bucket{M}[1m]))",
    "sum by (le) (increase(vllm:request_generation_tokens_bucket{M}[1m]))",
    "vllm:num_requests_running{M}",
    "vllm:num_requests_waiting{M}",
    "vllm:num_requests_swapped{M}",
    "vllm:kv_cache_usage_perc{M}",
    "vllm:gpu_cache_usage_perc{M}",
    "vllm:cache_config_info{M}",
    "vllm:engine_sleep_state{M}",
    "rate(vllm:prompt_tokens_total{M}[5s])",
    "rate(vllm:generation_tokens_total{M}[5s])",
    "rate(vllm:num_preemptions_total{M}[5s])",
    "sum by (finished_reason) (increase(vllm:request_success_total{M}[1m]))",
    "rate(vllm:prefix_cache_hits_total{M}[5s]) / rate(vllm:prefix_cache_queries_total{M}[5s])",
    'sum by (status) (rate(http_requests_total{handler="/v1/completions"}[5s]))',
    "rate(http_request_duration_seconds_sum[5s]) / rate(http_request_duration_seconds_count[5s])",
)
MODEL = "smollm2-135m-instruct"

COUNTERS = sorted(name for name, metric in SERIES.items() if metric.kind is not Kind.GAUGE)
OVERLOAD = {"HeadcountSLOBurn", "HeadcountSaturated", "HeadcountQueueGrows", "HeadcountRefusesRequests"}
UNRELATED = {"HeadcountErrors", "HeadcountReplicasLost", "HeadcountScalingFlaps", "HeadcountNotScraped"}
NUM_CLIENTS = 24
NUM_WORDS = 150


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{server.port}") as running:
        eventually(lambda: running.values("headcount_desired_replicas") == [2.0])
        yield running


def generate(server: ServerProcess, prompt: str, num_tokens: int) -> None:
    """With the retries of the stock client: a replica that was killed is not missed at once."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=STOP_DEADLINE_S, max_retries=8) as client:
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=num_tokens, extra_body={"ignore_eos": True})


def unshown(server: ServerProcess, prometheus: Prometheus, queries: set[str]) -> set[str]:
    """What of `queries` has shown nothing while requests came, good ones and bad ones, for as long as that helps."""
    deadline = time.monotonic() + STOP_DEADLINE_S
    while queries and time.monotonic() < deadline:
        generate(server, "Once upon a time there was a king who had three daughters, and the youngest was", 8)
        with server.client() as client:
            assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": -1}).is_client_error
        queries = {query for query in queries if not prometheus.has_shown(query)}
    return queries


def panel_queries() -> set[str]:
    found = set()
    for board in dashboards():
        for query in (query for panel in board.panels() for query in panel.queries):
            expression = query.expression
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            found.add(expression)
    return found


def test_every_panel_of_every_dashboard_shows_data(server: ServerProcess, prometheus: Prometheus) -> None:
    """With Grafana's variables filled in, each query has a finite value once requests have come."""
    queries = {query for query in panel_queries() if not any(name in query for name in EMPTY)}
    assert len(queries) > 100
    assert unshown(server, prometheus, queries) == set()


def test_dashboards_made_for_vllm_show_data(server: ServerProcess, prometheus: Prometheus) -> None:
    """Under the names, labels and types that others' queries use."""
    queries = {query.replace("{M}", f'{{model_name="{MODEL}"}}') for query in VLLM_QUERIES}
    assert unshown(server, prometheus, queries) == set()


async def test_an_overload_rings_for_what_it_is(server: ServerProcess, prometheus: Prometheus) -> None:
    """More prompts than two replicas take in in time: the error budget burns, and nothing unrelated is reported."""
    eventually(lambda: not prometheus.firing() & OVERLOAD)

    async def load(client: openai.AsyncOpenAI, number: int) -> None:
        for turn in itertools.count():
            first = NUM_CLIENTS * turn + number  # no two prompts begin alike
            prompt = " ".join(str(word) for word in range(first, first + NUM_WORDS))
            await client.completions.create(model=MODEL, prompt=prompt, max_tokens=2)

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=STOP_DEADLINE_S) as client:
        crowd = [asyncio.create_task(load(client, number)) for number in range(NUM_CLIENTS)]
        await asyncio.to_thread(eventually, lambda: "HeadcountSLOBurn" in prometheus.firing())
        for each in crowd:
            each.cancel()
        await asyncio.wait(crowd)
    assert prometheus.firing() & UNRELATED == set()
    eventually(lambda: prometheus.values("vllm:num_requests_running") == [0.0])


def test_counters_only_grow_when_a_replica_dies(server: ServerProcess, prometheus: Prometheus) -> None:
    """Killed and replaced: no series of the whole service fell, and the tokens of the dead one still count."""

    def replicas() -> list[int]:
        return [pid for pid in descendants(server.process.pid) if "ServeReplica:headcount" in command_of(pid)]

    before = prometheus.values("vllm:generation_tokens_total")
    victim = replicas()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: victim not in replicas())
    generate(server, "One two three", 5)
    eventually(lambda: len(replicas()) == 2)
    eventually(lambda: prometheus.values('headcount_replicas{state="ready"}') == [2.0])
    eventually(lambda: prometheus.values("vllm:generation_tokens_total") >= [before[0] + 5])
    assert {name for name in COUNTERS if prometheus.values(f"max(resets({name}[1h]))") not in ([], [0.0])} == set()
