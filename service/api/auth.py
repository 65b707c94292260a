"""Who is asking: a key is needed for every path but those that are named public here.

Where no keys are set (`api_keys_file`) everyone may do everything, except what is for admins: that nobody may.
"""

from __future__ import annotations

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.errors import fail
from service.api.keys import KeyRing, Tenant
from service.api.logs import record_of
from service.api.web import PAGE_PATHS
from service.errors import AuthenticationError, PermissionDeniedError

PUBLIC_PATHS = frozenset(
    {"/health", "/health/live", "/health/ready", "/version", "/docs", "/docs/oauth2-redirect", "/openapi.json"}
) | frozenset(PAGE_PATHS)
PUBLIC_PREFIX = "/static-offline-docs/"  # the scripts of /docs
METRICS_PATH = "/metrics"


class Authentication:
    """Notes the tenant of each request in its record; answers 401 and 403 itself, before the body is read."""

    def __init__(self, app: ASGIApp, keys: KeyRing) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_public(scope["path"]):
            await self._app(scope, receive, send)
            return
        record = record_of(scope)
        try:
            record.tenant = self._tenant(scope)
        except (AuthenticationError, PermissionDeniedError) as error:
            await fail(record, error).response(scope)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> Tenant:
        key = _key_of(Headers(scope=scope))
        if key is None:
            raise AuthenticationError(
                "This server asks for an API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            )
        tenant = self._keys.tenant_of(key)
        if tenant is None:
            raise AuthenticationError("The API key that was sent is not known here.")
        for_metrics = scope["path"] == METRICS_PATH
        if tenant.role == ("user" if for_metrics else "metrics"):
            raise PermissionDeniedError(f"A key with the role '{tenant.role}' may not be used here.")
        return tenant


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


def _key_of(headers: Headers) -> bytes | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1") or None
