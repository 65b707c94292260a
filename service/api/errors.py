"""The only place where an exception becomes an HTTP answer: status, error envelope, headers.

The envelope is OpenAI's, `{"error": {"message", "type", "param", "code"}}` with all four keys always; `code` is the
error's stable label. It is the body of every failed answer, and the data of the event that ends a stream which fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from service.api.logs import record_of
from service.errors import (
    ContextLengthError,
    EngineError,
    HeadcountError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    UnavailableError,
    UnknownModelError,
)

CLIENT_CLOSED_REQUEST = 499  # nobody reads it; the log line shows it

_STATUS: dict[type[HeadcountError], int] = {
    InvalidRequestError: HTTPStatus.BAD_REQUEST,
    ContextLengthError: HTTPStatus.BAD_REQUEST,
    UnknownModelError: HTTPStatus.NOT_FOUND,
    OverloadedError: HTTPStatus.TOO_MANY_REQUESTS,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
_HTTP_CODES = {
    HTTPStatus.NOT_FOUND: "unknown_url",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
}
_TYPES = {HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error"}
_INTERNAL_MESSAGE = (
    "The server failed to process this request. Its request id (x-request-id) finds the reason in the log."
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as HTTP shows it."""

    status: int
    message: str
    code: str | None
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def envelope(self) -> dict[str, dict[str, str | None]]:
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(HTTPStatus(self.status), kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        return JSONResponse(self.envelope, status_code=self.status, headers=self.headers)


def failure_of(error: Exception) -> Failure:
    """How `error` is answered. What is not the client's doing is not explained to the client: the log has it."""
    if isinstance(error, RequestError):
        return Failure(_STATUS[type(error)], str(error), error.label, error.param, _retry_headers(error))
    if isinstance(error, HTTPException):
        code = _HTTP_CODES.get(HTTPStatus(error.status_code))
        return Failure(error.status_code, error.detail, code, headers=dict(error.headers or {}))
    label = error.label if isinstance(error, EngineError) else HeadcountError.label
    return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, _INTERNAL_MESSAGE, label)


def _retry_headers(error: RequestError) -> dict[str, str]:
    if not isinstance(error, OverloadedError):
        return {}
    return {
        "retry-after": str(math.ceil(error.retry_after_s)),
        "retry-after-ms": str(math.ceil(error.retry_after_s * 1000)),
        "x-should-retry": "true",
    }


async def answer_error(request: Request, error: Exception) -> Response:
    """Exception handler of the application for everything that is raised on purpose."""
    record = record_of(request.scope)
    if isinstance(error, ClientDisconnect):
        record.client_disconnected = True
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    failure = failure_of(_explained(request, error) if isinstance(error, HTTPException) else error)
    record.error = failure.code
    return failure.response()


def _explained(request: Request, error: HTTPException) -> HTTPException:
    """The router's own 404 and 405 say no more than the status: name the method and URL."""
    asked = f"({request.method} {request.url.path[:200]})"
    details = {
        HTTPStatus.NOT_FOUND: f"Invalid URL {asked}",
        HTTPStatus.METHOD_NOT_ALLOWED: f"Method not allowed {asked}.",
    }
    detail = details.get(HTTPStatus(error.status_code), error.detail)
    return HTTPException(error.status_code, detail, error.headers)
