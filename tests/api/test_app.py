"""Routes other than generation, and what holds for all of them."""

from __future__ import annotations

import gc
import json

import httpx
import pytest

from service.api import chat, completions, examples
from service.api.app import create_app
from service.api.logs import RequestRecord
from service.health import Health, HealthState
from tests.api.fakes import MODEL_ID, ScriptedBackend, client_of, make_state

ALIVE = Health(state=HealthState.READY, reason="serving", num_waiting=2, num_running=3)
OVERLOADED = Health(state=HealthState.OVERLOADED, reason="ok", wait_s=12.3456)
DRAINING = Health(state=HealthState.DRAINING, reason="draining")
DEAD = Health(state=HealthState.DEAD, reason="no heartbeat for 60 s")


async def get(path: str, health: Health = ALIVE, **changes: object) -> httpx.Response:
    backend = ScriptedBackend()
    backend.status = health
    async with client_of(backend, **changes) as client:
        return await client.get(path)


@pytest.mark.parametrize(
    ("path", "health", "status"),
    [
        ("/health/live", ALIVE, 200),
        ("/health/live", DRAINING, 200),
        ("/health/live", DEAD, 503),
        ("/health/ready", ALIVE, 200),
        ("/health/ready", OVERLOADED, 200),
        ("/health/ready", DRAINING, 503),
        ("/health/ready", DEAD, 503),
        ("/health", ALIVE, 200),
        ("/health", DRAINING, 503),
    ],
)
async def test_health(path: str, health: Health, status: int) -> None:
    """Live asks for a heartbeat, ready for more: a draining server is alive and not ready, an overloaded one is."""
    answer = await get(path, health)

    assert answer.status_code == status
    if status == 200:
        assert answer.json() == {
            "status": "ok",
            "state": health.state,
            "reason": health.reason,
            "num_waiting": health.num_waiting,
            "num_running": health.num_running,
            "wait_s": round(health.wait_s, 3),
        }
    else:
        assert answer.json()["error"]["code"] == "service_unavailable"
        assert health.reason in answer.json()["error"]["message"]


async def test_models() -> None:
    """The list and the model agree; another id, or none, is a 404."""
    model = {"id": MODEL_ID, "object": "model", "created": 1_700_000_000, "owned_by": "headcount"}

    assert (await get("/v1/models")).json() == {"object": "list", "data": [model]}
    assert (await get(f"/v1/models/{MODEL_ID}")).json() == model
    assert (await get("/v1/models/acme%2Ftiny")).json() == model
    assert (await get("/v1/models/acme")).json()["error"]["code"] == "model_not_found"
    assert (await get("/v1/models/")).status_code == 404


async def test_version_and_metrics() -> None:
    """Both come from the state."""
    metrics = await get("/metrics", render_metrics=lambda: (b"up 1\n", "text/plain; version=0.0.4"))

    assert (await get("/version")).json() == {"version": "1.2.3"}
    assert (metrics.text, metrics.headers["content-type"]) == ("up 1\n", "text/plain; version=0.0.4")


@pytest.mark.parametrize(
    ("method", "path", "status", "message", "code"),
    [
        ("POST", "/v1/foo", 404, "Invalid URL (POST /v1/foo)", "unknown_url"),
        ("GET", "/", 404, "Invalid URL (GET /)", "unknown_url"),
        ("POST", "/v1/completions/", 404, "Invalid URL (POST /v1/completions/)", "unknown_url"),
        ("GET", "/v1/completions", 405, "Method not allowed (GET /v1/completions).", "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "Method not allowed (DELETE /v1/models).", "method_not_allowed"),
    ],
)
async def test_urls_and_methods_that_are_not_there(
    method: str, path: str, status: int, message: str, code: str
) -> None:
    """They are answered in the envelope, and named."""
    async with client_of(ScriptedBackend()) as client:
        answer = await client.request(method, path)

    assert answer.status_code == status
    assert answer.json() == {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    }
    assert (status == 405) == ("allow" in answer.headers)


async def test_an_unexpected_failure_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a 500 in the envelope and an id; the log has that id and the reason."""

    def broken() -> tuple[bytes, str]:
        raise RuntimeError("secret")

    answer = await get("/metrics", render_metrics=broken)

    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "The server failed to process this request: its log has the reason under the x-request-id.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert answer.headers["x-request-id"] in caplog.text
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("sent", "is_echoed"),
    [
        ("abc-123", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("two words", False),
        ("", False),
        ("naïve", False),
    ],
)
async def test_request_ids(sent: str, is_echoed: bool) -> None:
    """A sane id of the client's comes back, anything else is replaced; on errors too."""
    async with client_of(ScriptedBackend()) as client:
        for path in ("/v1/models", "/nowhere"):
            answer = await client.get(path, headers={b"X-Request-Id": sent.encode()})

            assert (answer.headers["x-request-id"] == sent) is is_echoed
            assert answer.headers["x-request-id"]


async def test_two_requests_with_one_id() -> None:
    """The client's id names a request for people only: the engine's ids differ."""
    backend = ScriptedBackend()
    async with client_of(backend) as client:
        for _ in range(2):
            answer = await client.post("/v1/completions", json={"prompt": "a"}, headers={"X-Request-Id": "same"})

            assert answer.status_code == 200
    first, second = backend.requests

    assert first.request_id != second.request_id


async def test_a_finished_request_leaves_nothing_behind() -> None:
    """Nothing refers to it any more: memory does not grow with the number of requests."""
    bodies = ({"prompt": "a"}, {"prompt": "a", "stream": True}, {"prompt": ["a", "b"]})
    async with client_of(ScriptedBackend()) as client:
        for body in bodies:
            await client.post("/v1/completions", json=body, headers={"X-Request-Id": "left-behind"})
        gc.collect()
        records = [each for each in gc.get_objects() if type(each) is RequestRecord]

    assert [record for record in records if record.request_id == "left-behind"] == []


async def test_browsers_may_be_let_in() -> None:
    """With an origin allowed, its pages pass the preflight and can read answers, errors and the request id."""
    origin = {"Origin": "http://ui.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    async with client_of(ScriptedBackend(), cors_origins=("http://ui.example",)) as client:
        allowed = await client.options("/v1/chat/completions", headers=preflight)
        failed = await client.post("/v1/chat/completions", headers=origin)
    async with client_of(ScriptedBackend()) as client:
        refused = await client.options("/v1/chat/completions", headers=preflight)

    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "http://ui.example"
    assert failed.status_code == 400
    assert failed.headers["access-control-allow-origin"] == "http://ui.example"
    assert "x-request-id" in failed.headers["access-control-expose-headers"]
    assert refused.status_code == 405


async def test_the_documentation_works_offline() -> None:
    """The page and everything that it loads come from this server."""
    async with client_of(ScriptedBackend()) as client:
        page = await client.get("/docs")
        assets = [part.split('"')[0] for part in page.text.split('href="')[1:] + page.text.split('src="')[1:]]
        answers = [await client.get(asset) for asset in assets]

    assert page.status_code == 200
    assert assets
    assert all(asset.startswith("/") and not asset.startswith("//") for asset in assets)
    assert [answer.status_code for answer in answers] == [200] * len(assets)


async def test_the_description_of_the_api() -> None:
    """It has the request fields, examples, and the envelope for every error; all its references lead somewhere."""
    description = (await get("/openapi.json")).json()
    schemas = description["components"]["schemas"]
    text = json.dumps(description)
    references = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}

    assert references <= schemas.keys()
    assert schemas["ChatRequest"]["properties"].keys() == chat.ChatRequest.model_fields.keys()
    assert schemas["CompletionRequest"]["properties"].keys() == completions.CompletionRequest.model_fields.keys()
    for path in ("/v1/chat/completions", "/v1/completions"):
        operation = description["paths"][path]["post"]

        assert operation["requestBody"]["content"]["application/json"]["example"]["model"] == MODEL_ID
        assert operation["responses"].keys() == {"200", "400", "404", "413", "415", "429", "500", "503", "504"}
    assert '"422"' not in text


@pytest.mark.parametrize(
    ("path", "example", "expected"),
    [
        ("/v1/chat/completions", examples.CHAT, examples.CHAT_ANSWER),
        ("/v1/completions", examples.COMPLETION, examples.COMPLETION_ANSWER),
        ("/v1/messages", examples.MESSAGE, examples.MESSAGE_ANSWER),
    ],
)
async def test_the_examples_are_true(path: str, example: dict[str, object], expected: dict[str, object]) -> None:
    """The example request is accepted, and its answer has the keys of the example answer."""
    async with client_of(ScriptedBackend()) as client:
        answer = await client.post(path, json=example)

    assert answer.status_code == 200
    assert keys_of(answer.json()) == keys_of(expected)


def keys_of(value: object) -> object:
    """The shape of a JSON value, without its leaves."""
    if isinstance(value, dict):
        return {key: keys_of(inner) for key, inner in value.items()}
    return [keys_of(inner) for inner in value] if isinstance(value, list) else None


def test_making_the_application_leaves_no_trace() -> None:
    """Two applications in one process share nothing."""
    first, second = (create_app(make_state(ScriptedBackend(), model_id=name)) for name in ("a", "b"))

    assert first is not second
    assert first.openapi() != second.openapi()
