"""Metrics as text for Prometheus to fetch."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from service.metrics.multiprocess import collected


def render(source: Path | CollectorRegistry, *, accept: str = "") -> tuple[bytes, str]:
    """The body and its content type, of a directory that processes share or of this process's own registry.

    `accept` is the request's header: Prometheus asks for OpenMetrics by it, everyone else gets the plain text format.
    """
    encode, content_type = choose_encoder(accept)
    if isinstance(source, CollectorRegistry):
        return encode(source), content_type
    with collected(source) as registry:
        return encode(registry), content_type
