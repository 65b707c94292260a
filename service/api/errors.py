"""The only place where an exception becomes an HTTP answer: status, error envelope, headers.

The envelope is OpenAI's, `{"error": {"message", "type", "param", "code"}}` with all four keys always; `code` is the
error's stable label. It is the body of every failed answer, and the data of the event that ends a stream which fails.
Only where Anthropic's API is served it is Anthropic's, `{"type": "error", "error": {"type", "message"}}`, and a full
queue has their status for it.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from service.api.logs import RequestRecord, record_of
from service.errors import (
    AuthenticationError,
    DeadlineError,
    EngineError,
    HeadcountError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitError,
    RequestError,
    UnavailableError,
    UnknownModelError,
)

_STATUS: dict[type[RequestError], int] = {
    AuthenticationError: HTTPStatus.UNAUTHORIZED,
    PermissionDeniedError: HTTPStatus.FORBIDDEN,
    UnknownModelError: HTTPStatus.NOT_FOUND,
    OverloadedError: HTTPStatus.TOO_MANY_REQUESTS,
    RateLimitError: HTTPStatus.TOO_MANY_REQUESTS,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineError: HTTPStatus.GATEWAY_TIMEOUT,
    RequestError: HTTPStatus.BAD_REQUEST,  # all others
}
_HTTP_CODES: dict[int, str] = {
    HTTPStatus.NOT_FOUND: "unknown_url",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_TIMEOUT: "request_timeout",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
}
_TYPES: dict[int, str] = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}

ANTHROPIC_PATH = "/v1/messages"
ANTHROPIC_OVERLOADED = 529  # their 429 is for one key's limits
_ANTHROPIC_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "overloaded_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "api_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}
_INTERNAL_MESSAGE = "The server failed to process this request: its log has the reason under the x-request-id."
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as HTTP shows it; `is_limit` where it is the tenant's own limit that was reached."""

    status: int
    message: str
    code: str | None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    is_limit: bool = False

    @property
    def envelope(self) -> dict[str, dict[str, str | None]]:
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def anthropic_envelope(self) -> dict[str, object]:
        kind = "rate_limit_error" if self.is_limit else _ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, scope: Scope) -> Response:
        """The answer to the request of `scope`."""
        if not is_anthropic(scope):
            return JSONResponse(self.envelope, status_code=self.status, headers=self.headers)
        is_overloaded = self.status == HTTPStatus.TOO_MANY_REQUESTS and not self.is_limit
        status = ANTHROPIC_OVERLOADED if is_overloaded else self.status
        return JSONResponse(self.anthropic_envelope, status_code=status, headers=self.headers)


def is_anthropic(scope: Scope) -> bool:
    """Whether the client speaks Anthropic's API."""
    return is_anthropic_path(scope["path"])


def is_anthropic_path(path: str) -> bool:
    return path == ANTHROPIC_PATH or path.startswith(ANTHROPIC_PATH + "/")


def fail(record: RequestRecord, error: Exception) -> Failure:
    """How `error` is answered; noted in `record`, and logged if it is our fault: then the client gets no details."""
    failure = _failure_of(error)
    record.error, record.is_limited = failure.code, failure.is_limit
    if failure.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _logger.error("request %s failed", record.request_id, exc_info=error)
    return failure


def _failure_of(error: Exception) -> Failure:
    if isinstance(error, RequestError):
        status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
        is_limit = isinstance(error, RateLimitError)
        return Failure(status, str(error), error.label, error.param, _headers(error), is_limit)
    if isinstance(error, HTTPException):
        code = _HTTP_CODES.get(error.status_code)
        return Failure(error.status_code, error.detail, code, headers=dict(error.headers or {}))
    label = error.label if isinstance(error, EngineError) else HeadcountError.label
    return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL_MESSAGE, label)


def _headers(error: RequestError) -> dict[str, str]:
    if isinstance(error, AuthenticationError):
        return {"www-authenticate": "Bearer"}
    if isinstance(error, DeadlineError):
        return {"x-should-retry": "false"}  # it would take as long again
    if not isinstance(error, OverloadedError | RateLimitError):
        return {}
    return {
        "retry-after": str(math.ceil(error.retry_after_s)),
        "retry-after-ms": str(math.ceil(error.retry_after_s * 1000)),
        "x-should-retry": "true",
    }


async def answer_error(request: Request, error: Exception) -> Response:
    """Exception handler of the application for everything that is raised on purpose."""
    if isinstance(error, HTTPException):
        error = _explained(request, error)
    return fail(record_of(request.scope), error).response(request.scope)


def _explained(request: Request, error: HTTPException) -> HTTPException:
    """The router's own 404 and 405 say no more than the status: name the method and URL."""
    asked = f"({request.method} {request.url.path[:200]})"
    details: dict[int, str] = {
        HTTPStatus.NOT_FOUND: f"Invalid URL {asked}",
        HTTPStatus.METHOD_NOT_ALLOWED: f"Method not allowed {asked}.",
    }
    detail = details.get(error.status_code, error.detail)
    return HTTPException(error.status_code, detail, error.headers)
