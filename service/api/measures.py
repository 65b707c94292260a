"""A finished request to the metrics."""

from __future__ import annotations

from service.api.logs import RequestRecord
from service.metrics.recorder import GenerationStats, HttpStats, Recorder


def measure(recorder: Recorder, record: RequestRecord, ended_at: float) -> None:
    """Count `record`; a generation only if it was admitted."""
    recorder.on_request(
        HttpStats(
            handler=record.endpoint,
            method=record.method,
            status=record.status,
            duration_s=ended_at - record.started_at,
            request_bytes=record.request_bytes,
            response_bytes=record.response_bytes,
            error=record.error,
        )
    )
    tally = record.tally
    if tally is not None and tally.is_admitted:
        recorder.on_generation(
            GenerationStats(
                n=tally.n,
                max_tokens=tally.max_tokens,
                finish_reasons=tally.outcomes(failed=record.error is not None),
                longest_output_tokens=tally.longest_output_tokens,
            )
        )
