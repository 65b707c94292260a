"""Who may do what: with a key, without one, with a wrong one, and where no keys are set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Mount

from tests.api.fakes import CHAT, client_for
from tests.api.tenants import ADMIN, ASK, METRICS, app_of, client, entry, headers_of, key_of, ring
from tests.api.test_adapters import LOAD, Shelf

PUBLIC = {
    *("/", "/app.js", "/style.css", "/icon.svg", "/inter.woff2"),
    *("/health", "/health/live", "/health/ready", "/version", "/docs", "/docs/oauth2-redirect", "/openapi.json"),
}
ANTHROPIC = "/v1/messages"
ADAPTER = {"lora_name": "new", "lora_path": "new"}


def operations(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of everything that is answered, in the document or not."""
    found, routes = [], [*app.routes]
    while routes:
        route: Any = routes.pop()
        if hasattr(route, "original_router"):  # as FastAPI keeps a router that was included
            routes += route.original_router.routes
        elif isinstance(route, Mount):
            found.append(("GET", f"{route.path}/swagger-ui.css"))
        else:
            found += [(method, route.path) for method in route.methods]
    return found


async def test_every_route_asks_for_a_key_but_those_that_are_named_public(tmp_path: Path) -> None:
    """A route that somebody adds cannot forget it. Nor can a method that a route does not have, or a wrong path."""
    app = app_of(ring(tmp_path, entry("alice")), adapters=Shelf())
    found = operations(app)
    assert {path for _, path in found} >= PUBLIC | {CHAT, "/metrics", "/fleet", "/tokenize", ANTHROPIC, LOAD}
    async with client_for(app) as http:
        for method, path in [*found, ("PUT", CHAT), ("GET", "/nowhere"), ("GET", "//health"), ("GET", "/health/")]:
            answer = await http.request(method, f"http://headcount{path.replace('{model_id:path}', 'x')}")
            is_public = path in PUBLIC or path.startswith("/static-offline-docs")
            assert (answer.status_code == 401) != is_public, (method, path)


async def test_the_document_says_what_needs_a_key(tmp_path: Path) -> None:
    """Its operations name the two ways to send one, except where none is needed; the page of the API can ask for it."""
    document = app_of(ring(tmp_path, entry("alice"))).openapi()

    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) == (path not in PUBLIC), path
            assert ("401" in operation["responses"]) == (path not in PUBLIC), path
    assert "securitySchemes" not in app_of(None).openapi()["components"]


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {key_of('alice')}"},
        {"authorization": f"bearer  {key_of('alice')} "},
        {"x-api-key": key_of("alice")},
        {"authorization": "Basic dTpw", "x-api-key": key_of("alice")},
    ],
)
async def test_ways_to_send_a_key(tmp_path: Path, headers: dict[str, str]) -> None:
    """As OpenAI's clients do, and as Anthropic's."""
    async with client(tmp_path, entry("alice")) as http:
        assert (await http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "asks for an API key"),
        ({"authorization": "Bearer"}, "asks for an API key"),
        ({"authorization": f"Basic {key_of('alice')}"}, "asks for an API key"),
        ({"authorization": key_of("alice")}, "asks for an API key"),
        ({"authorization": "Bearer sk-guess"}, "not known here"),
        ({"x-api-key": "sk-guess"}, "not known here"),
        ({"authorization": "Bearer sk-guess", "x-api-key": key_of("alice")}, "not known here"),
    ],
)
async def test_no_key_or_a_wrong_one(tmp_path: Path, headers: dict[str, str], message: str) -> None:
    """401 in the envelope of the dialect, and the key that was sent is not said again."""
    async with client(tmp_path, entry("alice")) as http:
        openai = await http.post(CHAT, json=ASK, headers=headers)
        anthropic = await http.post(ANTHROPIC, json=ASK, headers=headers)

    error = openai.json()["error"]
    assert (openai.status_code, error["code"], error["type"]) == (401, "invalid_api_key", "invalid_request_error")
    assert openai.headers["www-authenticate"] == "Bearer"
    assert message in error["message"]
    assert anthropic.json()["type"] == "error"
    assert (anthropic.status_code, anthropic.json()["error"]["type"]) == (401, "authentication_error")
    assert "sk-guess" not in openai.text + anthropic.text


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("user", "/v1/models", 200),
        ("user", "/fleet", 200),
        ("user", "/metrics", 403),
        ("metrics", "/metrics", 200),
        ("metrics", "/v1/models", 403),
        ("metrics", "/fleet", 403),
        ("metrics", "/nowhere", 403),
        ("admin", "/metrics", 200),
        ("admin", "/v1/models", 200),
    ],
)
async def test_what_a_role_may_read(tmp_path: Path, name: str, path: str, status: int) -> None:
    """Whoever scrapes cannot ask the model, and whoever asks cannot see what others use."""
    async with client(tmp_path, entry("user"), entry("metrics", METRICS), entry("admin", ADMIN)) as http:
        answer = await http.get(path, headers=headers_of(name))

    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["code"] == "permission_denied"


@pytest.mark.parametrize(("name", "status"), [("user", 403), ("metrics", 403), ("admin", 200)])
async def test_what_changes_the_server_is_for_admins(tmp_path: Path, name: str, status: int) -> None:
    """403 for everyone else."""
    everyone = entry("user"), entry("metrics", METRICS), entry("admin", ADMIN)
    async with client(tmp_path, *everyone, adapters=Shelf()) as http:
        assert (await http.post(LOAD, json=ADAPTER, headers=headers_of(name))).status_code == status


async def test_without_keys_all_is_open_but_what_changes_the_server() -> None:
    """That has no admin to ask for it; a key that is sent is not looked at."""
    async with client_for(app_of(None, adapters=Shelf())) as http:
        assert (await http.get("/v1/models", headers=headers_of("anyone"))).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
        refused = await http.post(LOAD, json=ADAPTER, headers=headers_of("anyone"))

    assert refused.status_code == 403
    assert "api_keys_file" in refused.json()["error"]["message"]


async def test_a_browser_may_ask_whether_it_may_ask(tmp_path: Path) -> None:
    """Where other origins are allowed, a preflight brings no key, and a refusal can be read by the page that asked."""
    origin = {"origin": "https://ui.example"}
    async with client(tmp_path, entry("alice"), cors_origins=("https://ui.example",)) as http:
        preflight = await http.options(CHAT, headers={**origin, "access-control-request-method": "POST"})
        refused = await http.post(CHAT, json=ASK, headers=origin)
        allowed = await http.post(CHAT, json=ASK, headers={**origin, **headers_of("alice")})

    assert preflight.status_code == 200
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://ui.example"
    assert "x-ratelimit-remaining-tokens" in allowed.headers["access-control-expose-headers"]
