"""Metrics as text for Prometheus to fetch.

Always the plain text format: in OpenMetrics, prometheus_client spells `vllm:` as `vllm_` unless the reader asks
otherwise, which Prometheus 2 does not, and every dashboard would be empty.
"""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from service.metrics.multiprocess import collected


def render(source: Path | CollectorRegistry, *more: Collector) -> tuple[bytes, str]:
    """The body and its content type, of a directory that processes share or of this process's own registry; and of
    `more` collectors besides."""
    if isinstance(source, CollectorRegistry):
        return _text(source, more), CONTENT_TYPE_PLAIN_0_0_4
    with collected(source) as registry:
        return _text(registry, more), CONTENT_TYPE_PLAIN_0_0_4


def _text(registry: CollectorRegistry, more: tuple[Collector, ...]) -> bytes:
    own = CollectorRegistry()
    for collector in more:
        own.register(collector)
    return generate_latest(registry) + (generate_latest(own) if more else b"")


def serve_metrics(directory: Path, port: int, host: str = "") -> ThreadingHTTPServer:
    """Serve what the processes of this node share at `port`, path /metrics, on a thread.

    Every replica of a node opens the same port, and the kernel chooses who answers: it does not matter who does, nor
    who goes.
    """
    server = _SharedPortServer((host, port), _handler(directory))
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


class _SharedPortServer(ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True


def _handler(directory: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            body, content_type = render(directory)
            self.send_response(HTTPStatus.OK)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server spells it
            """Scrapes are not worth a line each."""

    return Handler
