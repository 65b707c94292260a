"""The server's own numbers are read under any of the names it may give them, and absence is not zero."""

from __future__ import annotations

import httpx
import pytest

from loadtest.scrape import Scraper, Snapshot, parse_metrics
from tests.loadtest.scripted import Reply, ScriptedServer, steady

VLLM = """
# TYPE vllm:request_success counter
vllm:request_success_total{engine="0",finished_reason="stop"} 3
vllm:request_success_total{engine="0",finished_reason="length"} 4
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0"} 10
vllm:prompt_tokens_total{engine="1"} 20
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total 5
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running 2
# TYPE vllm:request_queue_time_seconds histogram
vllm:request_queue_time_seconds_bucket{le="0.3"} 6
vllm:request_queue_time_seconds_bucket{le="+Inf"} 7
vllm:request_queue_time_seconds_sum 1.5
vllm:request_queue_time_seconds_count 7
"""


def test_vllm_names() -> None:
    """Counters are summed over labels; what is not there is None."""
    assert parse_metrics(VLLM, 3.0) == Snapshot(
        at_s=3.0,
        requests=7,
        prompt_tokens=30,
        output_tokens=5,
        running=2,
        queue_time_sum_s=1.5,
        queue_time_buckets=((0.3, 6.0), (float("inf"), 7.0)),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# TYPE llamacpp:tokens_predicted_total counter\nllamacpp:tokens_predicted_total 9\n", {"output_tokens": 9}),
        ("# TYPE sglang:num_queue_reqs gauge\nsglang:num_queue_reqs 4\n", {"waiting": 4}),
        ("# TYPE headcount_current_replicas gauge\nheadcount_current_replicas 3\n", {"replicas": 3}),
        ("# TYPE other gauge\nother 1\n", {}),
    ],
)
def test_other_servers_names(text: str, expected: dict[str, float]) -> None:
    """SGLang, llama.cpp and our fleet are understood too."""
    assert parse_metrics(text, 0.0) == Snapshot(at_s=0.0, **expected)  # type: ignore[arg-type]


async def test_a_server_without_metrics_is_no_error() -> None:
    """404, nonsense and silence are all None, and no decisions are none."""
    answers = {"/metrics": httpx.Response(200, text='{"not": metrics'), "/fleet/decisions": httpx.Response(404)}
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda request: answers[request.url.path])) as http:
        scraper = Scraper(http, "http://h")
        assert await scraper.snapshot(0.0) is None
        assert await scraper.decisions() == []
    async with httpx.AsyncClient() as http:
        assert await Scraper(http, "http://127.0.0.1:9").snapshot(0.0) is None


async def test_counters_are_read_once_they_stand_still() -> None:
    """Servers count a moment after the answer: the last snapshot is the one that repeats, and no more are asked for."""
    values = iter([1, 2, 3, 3])

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=f"# TYPE vllm:prompt_tokens counter\nvllm:prompt_tokens_total {next(values)}\n")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        settled = await Scraper(http, "http://h").settled(9.0)

    assert settled == Snapshot(at_s=9.0, prompt_tokens=3)
    assert next(values, None) is None


@pytest.mark.parametrize("body", [[{"at": 1}, 3], {"decisions": [{"at": 1}]}])
async def test_decisions_in_either_shape(body: object) -> None:
    """A list, or a list under `decisions`; what is no object is left out."""
    with ScriptedServer(steady(Reply()), extras={"/fleet/decisions": body}) as server:
        async with httpx.AsyncClient(trust_env=False) as http:
            assert await Scraper(http, server.url).decisions() == [{"at": 1}]
