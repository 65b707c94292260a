"""The files of the page: what they are served with, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tests.api.fakes import ScriptedBackend, client_of


class View:
    async def status(self) -> Mapping[str, Any]:
        return {}

    async def decisions(self, since: int, limit: int, *, only_changes: bool) -> Sequence[Mapping[str, Any]]:
        return []


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/inter.woff2", "font/woff2"),
    ],
)
async def test_a_file_is_served_once_and_then_asked_about(path: str, media_type: str) -> None:
    """Under the policy, and not again to who has it."""
    async with client_of(ScriptedBackend(), fleet=View()) as http:
        first = await http.get(path)
        head = await http.head(path)
        again = await http.get(path, headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, first.headers["content-type"]) == (200, media_type)
    assert len(first.content) > 100
    assert (head.status_code, head.headers["etag"], head.content) == (200, first.headers["etag"], b"")
    assert (again.status_code, again.content) == (304, b"")
    for answer in (first, again):
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_the_page_is_where_the_fleet_is() -> None:
    """A replica by itself has none; and it is no part of the API's description."""
    async with client_of(ScriptedBackend()) as http:
        assert (await http.get("/")).status_code == 404
    async with client_of(ScriptedBackend(), fleet=View()) as http:
        assert "/app.js" not in (await http.get("/openapi.json")).json()["paths"]
