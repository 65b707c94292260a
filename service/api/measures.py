"""A finished request to the metrics."""

from __future__ import annotations

from http import HTTPStatus

from service.api.keys import Tenant
from service.api.logs import RequestRecord
from service.errors import OverloadedError
from service.metrics.recorder import GenerationStats, HttpStats, Recorder, TenantOutcome, TenantStats


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
            is_limited=record.is_limited,
        )
    )
    if record.tenant is not None:
        recorder.on_tenant(_tenant_stats(record.tenant, record))
    tally = record.tally
    if tally is not None and tally.is_admitted:
        recorder.on_generation(
            GenerationStats(
                n=tally.n,
                max_tokens=tally.max_tokens,
                finish_reasons=record.outcomes(),
                longest_output_tokens=tally.longest_output_tokens,
            )
        )


def _tenant_stats(tenant: Tenant, record: RequestRecord) -> TenantStats:
    num_output_tokens = 0 if record.tally is None else record.tally.num_output_tokens
    return TenantStats(
        tenant=tenant.name,
        outcome=_outcome(record),
        num_prompt_tokens=record.num_used_tokens - num_output_tokens,
        num_output_tokens=num_output_tokens,
    )


def _outcome(record: RequestRecord) -> TenantOutcome:
    if record.is_limited:
        return "limited"
    if record.client_disconnected:
        return "gone"
    is_refused = HTTPStatus.BAD_REQUEST <= record.status < HTTPStatus.INTERNAL_SERVER_ERROR
    if is_refused or record.error == OverloadedError.label:  # which is a 529 where Anthropic's API is served
        return "refused"
    return "ok" if record.error is None else "failed"  # of a stream that fails, the status is 200
