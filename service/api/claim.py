"""Who asks, and until when: what is known of a request before its body is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.types import Scope

from service.api.logs import record_of
from service.errors import InvalidRequestError
from service.types import Claim, GenerateRequest

TIMEOUT_HEADER = "X-Request-Timeout"
MAX_TIMEOUT_S = 86_400.0


def claim_of(scope: Scope) -> Claim:
    """By the tenant and the header `X-Request-Timeout` (seconds). Raises InvalidRequestError."""
    record, sent = record_of(scope), Headers(scope=scope).get(TIMEOUT_HEADER)
    deadline_at = math.inf
    if sent is not None:
        try:
            timeout_s = float(sent)
        except ValueError:
            timeout_s = math.nan
        deadline_at = record.started_at + checked_timeout(timeout_s, TIMEOUT_HEADER)
    if record.tenant is None:
        return Claim(deadline_at=deadline_at)
    tenant = record.tenant
    return Claim(tenant=tenant.name, weight=tenant.weight, priority=tenant.priority, deadline_at=deadline_at)


def checked_timeout(timeout_s: float, param: str) -> float:
    """`timeout_s`, which `param` asked for. Raises InvalidRequestError unless it is a time."""
    if not 0.0 < timeout_s <= MAX_TIMEOUT_S:
        raise InvalidRequestError(
            f"{param} must be a number of seconds, more than 0 and up to {MAX_TIMEOUT_S:g}.", param=param
        )
    return timeout_s


def claimed(requests: Sequence[GenerateRequest], claim: Claim) -> tuple[GenerateRequest, ...]:
    """`requests` made on behalf of `claim`, until its deadline or their own."""
    return tuple(
        replace(request, claim=replace(claim, deadline_at=min(claim.deadline_at, request.claim.deadline_at)))
        for request in requests
    )
