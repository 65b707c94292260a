"""Metrics as text for Prometheus to fetch.

Always the plain text format: in OpenMetrics, prometheus_client spells `vllm:` as `vllm_` unless the reader asks
otherwise, which Prometheus 2 does not, and every dashboard would be empty.
"""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from service.metrics.multiprocess import collected


def render(source: Path | CollectorRegistry) -> tuple[bytes, str]:
    """The body and its content type, of a directory that processes share or of this process's own registry."""
    if isinstance(source, CollectorRegistry):
        return generate_latest(source), CONTENT_TYPE_PLAIN_0_0_4
    with collected(source) as registry:
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
