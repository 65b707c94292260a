"""Who is asking, and how much they may: a key is needed for every path but those that are named public here.

Where no keys are set (`api_keys_file`) everyone may do everything, except what is for admins: that nobody may.
"""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.errors import fail
from service.api.keys import KeyRing, Tenant
from service.api.limits import Limiter
from service.api.logs import RequestRecord, record_of
from service.api.state import ApiState
from service.api.web import PAGE_PATHS
from service.errors import AuthenticationError, PermissionDeniedError, RateLimitError, RequestError

PUBLIC_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/version", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
) | frozenset(PAGE_PATHS)
PUBLIC_PREFIX = "/static-offline-docs/"  # the scripts of /docs
METRICS_PATH = "/metrics"
RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)


class Authentication:
    """Notes the tenant of each request in its record; answers 401, 403 and 429 itself, before the body is read.

    Limits are for what costs something: every POST.
    """

    def __init__(self, app: ASGIApp, state: ApiState) -> None:
        self._app = app
        self._keys = state.keys
        self._limiter = Limiter(state.clock, state.num_replicas)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keys is None or scope["type"] != "http" or is_public(_path(scope)):
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        try:
            record.tenant = tenant = _tenant(self._keys, scope)
        except RequestError as error:
            await fail(record, error).response(scope)(scope, receive, send)
            return
        if scope["method"] == "POST":
            await self._limited(tenant, record, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _limited(self, tenant: Tenant, record: RequestRecord, scope: Scope, receive: Receive, send: Send) -> None:
        record.usage = usage = self._limiter.usage(tenant)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(usage.headers())
            await send(message)

        try:
            usage.admit()
        except RateLimitError as error:
            await fail(record, error).response(scope)(scope, receive, send_with_limits)
            return
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            usage.close(record.num_used_tokens)


def is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX)


async def admin_only(request: Request) -> None:
    """A dependency of routes that change the server: `dependencies=[Depends(admin_only)]`. Raises
    PermissionDeniedError."""
    tenant = record_of(request.scope).tenant
    if tenant is None:
        raise PermissionDeniedError("This is for admins, and this server has no keys: set api_keys_file.")
    if tenant.role != "admin":
        raise PermissionDeniedError("This needs a key with the role 'admin'.")


def _tenant(keys: KeyRing, scope: Scope) -> Tenant:
    key = _key_of(Headers(scope=scope))
    if key is None:
        raise AuthenticationError(
            "This server asks for an API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
        )
    tenant = keys.tenant_of(key)
    if tenant is None:
        raise AuthenticationError("The API key that was sent is not known here.")
    if tenant.role == ("user" if _path(scope) == METRICS_PATH else "metrics"):
        raise PermissionDeniedError(f"A key with the role '{tenant.role}' may not be used here.")
    return tenant


def _path(scope: Scope) -> str:
    """Without the prefix under which the application may be mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _key_of(headers: Headers) -> bytes | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1") or None
