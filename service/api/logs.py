"""One structured line per finished HTTP request, as JSON or text. Prompts are in it on request only, outputs never."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TextIO

from starlette.types import Scope
from typing_extensions import override

from service.api.keys import Tenant
from service.api.limits import Usage
from service.errors import DeadlineError, OverloadedError
from service.types import FinishReason, GenerateRequest

REQUEST_LOGGER = "headcount.request"
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that did not wait for an answer
_RECORD_KEY = "headcount.record"
_FIELDS_KEY = "fields"


@dataclass(slots=True)
class Tally:
    """What one request has used so far. Instants are monotonic seconds, None while it has not got that far."""

    arrival_at: float
    n: int
    num_choices: int
    max_tokens: int
    is_admitted: bool = False
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    longest_output_tokens: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    finish_reasons: list[FinishReason] = field(default_factory=list)

    def fields(self) -> dict[str, object]:
        """Its part of the log line."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "output_tokens": self.num_output_tokens,
            "cached_tokens": self.num_cached_tokens,
            "queue_s": _elapsed(self.arrival_at, self.scheduled_at),
            "ttft_s": _elapsed(self.arrival_at, self.first_token_at),
            "tpot_s": self._tpot_s(),
            "finish_reasons": [reason.value for reason in self.finish_reasons],
        }

    def _tpot_s(self) -> float | None:
        """Seconds per output token after the first. Choices run side by side: each has its share of the tokens."""
        decode_s = _elapsed(self.first_token_at, self.last_token_at)
        num_gaps = self.num_output_tokens / self.num_choices - 1
        return None if decode_s is None or num_gaps <= 0 else round(decode_s / num_gaps, 6)


@dataclass(slots=True)
class RequestRecord:
    """What is known of one HTTP request; filled while it is served.

    `endpoint` is a route's path, never a raw URL; `status` is CLIENT_CLOSED_REQUEST until an answer begins. `request`
    is the first of those that it became; `trace_id` is there where requests are traced, `tenant` where keys are asked
    for, `usage` where limits are looked at: `is_limited` says that one was reached.
    """

    request_id: str
    method: str
    started_at: float
    endpoint: str = "unknown"
    model: str | None = None
    status: int = CLIENT_CLOSED_REQUEST
    error: str | None = None
    client_disconnected: bool = False
    request_bytes: int = 0
    response_bytes: int = 0
    prompts: list[str] | None = None
    request: GenerateRequest | None = None
    is_stream: bool = False
    tally: Tally | None = None
    trace_id: str | None = None
    tenant: Tenant | None = None
    usage: Usage | None = None
    is_limited: bool = False

    @property
    def num_used_tokens(self) -> int:
        """Of prompts and outputs; what generates nothing has used what it reserved."""
        if self.tally is None:
            return 0 if self.usage is None else self.usage.num_reserved
        return self.tally.num_prompt_tokens + self.tally.num_output_tokens if self.tally.is_admitted else 0

    def outcomes(self) -> tuple[FinishReason, ...]:
        """One finish reason per choice that was admitted: those that are not finished by now ran out of time, failed,
        or their client has gone."""
        tally = self.tally
        if tally is None or not tally.is_admitted:
            return ()
        missing = FinishReason.ABORT if self.error is None else FinishReason.ERROR
        if self.error in {DeadlineError.label, OverloadedError.label}:
            missing = FinishReason.TIMEOUT
        return (*tally.finish_reasons, *[missing] * (tally.num_choices - len(tally.finish_reasons)))

    def reserve(self, num_tokens: int) -> None:
        """Before the engine gets them. Raises RateLimitError."""
        if self.usage is not None:
            self.usage.reserve(num_tokens)

    def fields(self, ended_at: float) -> dict[str, object]:
        return {
            "request_id": self.request_id,
            "method": self.method,
            "endpoint": self.endpoint,
            "model": self.model,
            "status": self.status,
            "error": self.error,
            "client_disconnected": self.client_disconnected,
            "e2e_s": _elapsed(self.started_at, ended_at),
            **(self.tally.fields() if self.tally else {}),
            **({"prompts": self.prompts} if self.prompts is not None else {}),
            **({"trace_id": self.trace_id} if self.trace_id is not None else {}),
            **({"tenant": self.tenant.name} if self.tenant is not None else {}),
        }


def attach_record(scope: Scope, record: RequestRecord) -> None:
    scope[_RECORD_KEY] = record


def record_of(scope: Scope) -> RequestRecord:
    """The record that `RequestScope` attached to this request."""
    record = scope[_RECORD_KEY]
    assert isinstance(record, RequestRecord)
    return record


def log_request(record: RequestRecord, ended_at: float, level: int = logging.INFO) -> None:
    logging.getLogger(REQUEST_LOGGER).log(level, "request finished", extra={_FIELDS_KEY: record.fields(ended_at)})


def configure_logging(style: Literal["json", "text"], level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send this process's log to `stream` (default: standard error), one line per message. Call once, at start."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class JsonFormatter(logging.Formatter):
    """One JSON object per message: time, level, logger, message, then the fields of a request line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """The same for people: `12:00:00 INFO headcount.request: request finished request_id=… status=200`."""

    def __init__(self) -> None:
        super().__init__("{asctime} {levelname} {name}: {message}", datefmt="%H:%M:%S", style="{")

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = (f"{name}={value}" for name, value in _fields_of(record).items() if value not in (None, []))
        return " ".join([super().formatMessage(record), *fields])


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    fields: Mapping[str, object] = getattr(record, _FIELDS_KEY, {})
    return fields


def _elapsed(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(end - start, 6)
