"""Every error the service raises on purpose, as one tree. Each class has one stable label: the same word in HTTP
bodies, logs and metrics.

    HeadcountError
    ├── ConfigError               a setting is unknown, malformed or contradicts another
    ├── StartupError              the machine cannot do what is asked (port taken, too little memory, …)
    ├── ModelError                the model cannot be loaded
    │   ├── ModelNotFoundError        no such path, hub id or file
    │   ├── ModelDownloadError        fetching it failed or the bytes are not the expected ones
    │   └── UnsupportedModelError     architecture, tensor type or option that is not implemented
    ├── RequestError              the client's request cannot be served as it is
    │   ├── InvalidRequestError       a field is missing, malformed, out of range or unknown (400)
    │   ├── ContextLengthError        prompt and completion do not fit the model or its KV cache (400)
    │   ├── AuthenticationError       no API key, or one that is not known (401)
    │   ├── PermissionDeniedError     a key that may not do this (403)
    │   ├── UnknownModelError         the `model` asked for is not served here (404)
    │   ├── OverloadedError           cannot be begun in time; `retry_after_s` says when to come back (429)
    │   ├── RateLimitError            the tenant's own limit is reached; `retry_after_s` likewise (429)
    │   ├── UnavailableError          starting, draining or dead (503)
    │   └── DeadlineError             begun, and not done in the time that the client gave (504)
    ├── GrammarError              a sequence cannot go on under its grammar; ends that sequence alone
    └── EngineError               our fault: a sequence or the engine failed (500)

Standard library only. HTTP status codes are the API's business (`service.api.errors`).
"""

from __future__ import annotations


class HeadcountError(Exception):
    """Base of all; `str(error)` is one sentence for a person that says what to do."""

    label = "internal_error"


class ConfigError(HeadcountError):
    label = "config_error"


class StartupError(HeadcountError):
    label = "startup_error"


class ModelError(HeadcountError):
    label = "model_error"


class ModelNotFoundError(ModelError):
    label = "model_not_found"


class ModelDownloadError(ModelError):
    label = "model_download_failed"


class UnsupportedModelError(ModelError):
    label = "model_unsupported"


class RequestError(HeadcountError):
    """`param` names the field at fault as the client wrote it (`messages[0].content`), or is None."""

    label = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequestError(RequestError):
    label = "invalid_value"


class ContextLengthError(RequestError):
    label = "context_length_exceeded"


class AuthenticationError(RequestError):
    label = "invalid_api_key"


class PermissionDeniedError(RequestError):
    label = "permission_denied"


class UnknownModelError(RequestError):
    label = "model_not_found"


class OverloadedError(RequestError):
    label = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitError(RequestError):
    label = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnavailableError(RequestError):
    label = "service_unavailable"


class DeadlineError(RequestError):
    label = "timeout"


class GrammarError(HeadcountError):
    label = "grammar_error"


class EngineError(HeadcountError):
    label = "engine_error"
