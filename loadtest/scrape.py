"""What the server says about itself: its Prometheus metrics, its fleet and its scaling decisions, where it offers
them.

Every name that is read is in one of the tables here. A server without `/metrics` is tested all the same, with less
to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

SCRAPE_TIMEOUT_S = 2.0
SCRAPE_EVERY_S = 1.0
SETTLE_TRIES = 15
SETTLE_WAIT_S = 0.2

# Each quantity under the names that servers give it; the first that is present counts. Samples are summed over labels.
PROMPT_TOKENS = ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total")
OUTPUT_TOKENS = ("vllm:generation_tokens_total", "sglang:generation_tokens_total", "llamacpp:tokens_predicted_total")
REQUESTS = ("vllm:request_success_total", "sglang:num_requests_total", "tgi_request_success_total")
RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
    "tgi_batch_current_size",
)
WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred", "tgi_queue_size")
QUEUE_TIME = ("vllm:request_queue_time_seconds", "sglang:queue_time_seconds", "tgi_request_queue_duration")
REPLICAS = ("headcount_current_replicas", "headcount_running_replicas", "headcount_replicas")

Buckets = tuple[tuple[float, float], ...]  # (upper bound in seconds, cumulative count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The server's numbers at one moment; None where it does not say."""

    at_s: float
    requests: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    running: float | None = None
    waiting: float | None = None
    replicas: float | None = None
    queue_time_sum_s: float | None = None
    queue_time_buckets: Buckets = ()


@dataclass(slots=True)
class _Samples:
    sums: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)

    def first(self, names: tuple[str, ...]) -> float | None:
        return next((self.sums[name] for name in names if name in self.sums), None)


def parse_metrics(text: str, at_s: float) -> Snapshot:
    """Raises ValueError when the text is not the Prometheus format."""
    samples = _Samples()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.sums[sample.name] = samples.sums.get(sample.name, 0.0) + sample.value
            if sample.name.endswith("_bucket") and family.name in QUEUE_TIME:
                bounds = samples.buckets.setdefault(family.name, {})
                bound = float(sample.labels["le"])
                bounds[bound] = bounds.get(bound, 0.0) + sample.value
    queue = next((name for name in QUEUE_TIME if name in samples.buckets), None)
    return Snapshot(
        at_s=at_s,
        requests=samples.first(REQUESTS),
        prompt_tokens=samples.first(PROMPT_TOKENS),
        output_tokens=samples.first(OUTPUT_TOKENS),
        running=samples.first(RUNNING),
        waiting=samples.first(WAITING),
        replicas=samples.first(REPLICAS),
        queue_time_sum_s=samples.sums.get(f"{queue}_sum") if queue else None,
        queue_time_buckets=tuple(sorted(samples.buckets[queue].items())) if queue else (),
    )


class Scraper:
    """Reads one server. Failing to read is never an error: the answer is then None."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self._url = url

    async def snapshot(self, at_s: float) -> Snapshot | None:
        try:
            response = await self._http.get(f"{self._url}/metrics", timeout=SCRAPE_TIMEOUT_S, follow_redirects=True)
            return parse_metrics(response.text, at_s) if response.status_code == httpx.codes.OK else None
        except (httpx.HTTPError, ValueError):
            return None

    async def settled(self, at_s: float) -> Snapshot | None:
        """A snapshot after the run: asked again until the counters stand still, for servers count a moment later."""
        last = await self.snapshot(at_s)
        for _ in range(SETTLE_TRIES):
            await asyncio.sleep(SETTLE_WAIT_S)
            now = await self.snapshot(at_s)
            if now == last:
                break
            last = now
        return last

    async def decisions(self) -> list[dict[str, Any]]:
        """Scaling decisions (`GET /fleet/decisions`), oldest first; empty where the server does not offer them."""
        try:
            response = await self._http.get(f"{self._url}/fleet/decisions", timeout=SCRAPE_TIMEOUT_S)
            body = response.json() if response.status_code == httpx.codes.OK else []
        except (httpx.HTTPError, ValueError):
            return []
        found = body.get("decisions", []) if isinstance(body, Mapping) else body
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
