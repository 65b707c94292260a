"""The page: files built beforehand (`service/web`), served with a policy under which no script but ours runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

DIRECTORY = Path(__file__).parent.parent / "web" / "dist"

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/inter.woff2": ("inter.woff2", "font/woff2"),
}
PAGE_PATHS = tuple(_FILES)
_HEADERS = {
    # Nothing inline, nothing from elsewhere, and no way to make markup out of text.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
        " require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # kept, and asked about each time
}


def page_routes() -> APIRouter:
    """The page at `/`. Its links are relative, so that it works behind a path prefix too."""
    router = APIRouter(include_in_schema=False)
    for path, (name, media_type) in _FILES.items():
        router.add_api_route(path, _file((DIRECTORY / name).read_bytes(), media_type), methods=["GET", "HEAD"])
    return router


def _file(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    headers = {**_HEADERS, "content-type": media_type, "etag": f'"{sha256(content).hexdigest()[:32]}"'}

    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return file
