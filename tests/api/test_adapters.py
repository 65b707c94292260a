"""Adapters by name: a request that asks for one gets it, under that name; admins load and unload them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from service.errors import InvalidRequestError, UnavailableError, UnknownModelError
from service.types import Adapter
from tests.api.fakes import MESSAGES, MODEL_ID, Json, ScriptedBackend, complaint, post
from tests.api.tenants import ADMIN, client, entry, headers_of

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
CARD = {"object": "model", "created": 1_700_000_000, "owned_by": "headcount", "parent": MODEL_ID}
CHAT_BODY = {"messages": MESSAGES, "max_tokens": 9}


@dataclass(frozen=True)
class Named:
    name: str
    key: bytes = b"k"


@dataclass
class Shelf:
    """An `AdapterView` over a dictionary. What is loaded from `bad` is refused."""

    adapters: dict[str, Named] = field(default_factory=lambda: {name: Named(name) for name in ("sql", "org/chat")})

    def names(self) -> Sequence[str]:
        return list(self.adapters)

    def find(self, name: str) -> Adapter | None:
        if name == "lost":
            raise UnavailableError("The adapter 'lost' cannot be used at the moment.")
        return self.adapters.get(name)

    def load(self, name: str, path: str) -> None:
        if path == "bad":
            raise InvalidRequestError("bad has no adapter_config.json.", param="lora_path")
        self.adapters[name] = Named(name)

    def unload(self, name: str) -> None:
        if name not in self.adapters:
            raise UnknownModelError(f"There is no adapter '{name}'.", param="lora_name")
        del self.adapters[name]


def model_of(answer: httpx.Response) -> str:
    """As a whole answer or the first event of a stream names it."""
    text = answer.text
    if text.startswith("{"):
        found = json.loads(text)
    else:
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        found = events[0].get("response") or events[0].get("message") or events[0]
    return str(found["model"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT_BODY),
        ("/v1/completions", {"prompt": ["one", "two"], "max_tokens": 9}),
        ("/v1/messages", CHAT_BODY),
        ("/v1/responses", {"input": "hi", "max_output_tokens": 9}),
    ],
)
async def test_a_request_for_an_adapter_gets_it(path: str, body: Json, stream: bool) -> None:
    """Whichever API it comes by: the engine gets the adapter, and the answer has its name."""
    backend = ScriptedBackend()
    answer = await post(path, {**body, "model": "sql", "stream": stream}, backend, adapters=Shelf())

    assert answer.status_code == 200, answer.text
    assert model_of(answer) == "sql"
    assert [request.adapter for request in backend.requests] == [Named("sql")] * (2 if "prompt" in body else 1)


@pytest.mark.parametrize("fields", [{}, {"model": None}, {"model": MODEL_ID}])
async def test_others_get_the_model_as_it_is(fields: Json) -> None:
    """Its own name, or none, is no adapter's."""
    backend = ScriptedBackend()
    answer = await post("/v1/chat/completions", CHAT_BODY | fields, backend, adapters=Shelf())

    assert answer.json()["model"] == MODEL_ID
    assert backend.requests[0].adapter is None


async def test_the_log_names_the_adapter(caplog: pytest.LogCaptureFixture) -> None:
    """A line of the request log says which model was asked for."""
    caplog.set_level("INFO")
    await post("/v1/chat/completions", CHAT_BODY | {"model": "sql"}, adapters=Shelf())
    (line,) = [record for record in caplog.records if record.name == "headcount.request"]
    assert line.__dict__["fields"]["model"] == "sql"


@pytest.mark.parametrize("view", [None, Shelf()])
async def test_an_unknown_name_is_not_found(view: Shelf | None) -> None:
    """404 with the code that clients know, with adapters and without."""
    answer = await post("/v1/chat/completions", CHAT_BODY | {"model": "other"}, adapters=view)

    message = f"The model 'other' does not exist. The model served here is '{MODEL_ID}'."
    assert answer.status_code == 404
    assert answer.json() == complaint(message, "model", "model_not_found")


async def test_an_adapter_that_cannot_be_used_now_is_a_503() -> None:
    """It exists, so it is no 404: another replica may have it, and this one soon."""
    answer = await post("/v1/completions", {"prompt": "x", "model": "lost"}, adapters=Shelf())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")


async def test_tokens_are_those_of_the_model() -> None:
    """An adapter has the tokenizer of its model."""
    answer = await post("/tokenize", {"prompt": "abc", "model": "sql"}, adapters=Shelf())
    assert answer.json()["count"] == 4


@pytest.mark.parametrize(("path", "body"), [("/v1/embeddings", {"input": "x"}), ("/v1/attention", {"prompt": "x"})])
async def test_what_only_the_model_itself_does_is_refused(path: str, body: Json) -> None:
    """Never is the model's own answer taken for the adapter's."""
    answer = await post(path, body | {"model": "sql"}, adapters=Shelf())

    message = f"The adapter 'sql' generates text, and nothing else: ask for '{MODEL_ID}'."
    assert answer.status_code == 400
    assert answer.json() == complaint(message, "model")


async def test_adapters_are_listed_as_models(tmp_path: Path) -> None:
    """Each with its parent, in the list and alone."""
    async with client(tmp_path, entry("alice"), adapters=Shelf()) as http:
        http.headers.update(headers_of("alice"))
        listed = (await http.get("/v1/models")).json()["data"]
        one = (await http.get("/v1/models/org/chat")).json()

    assert [model["id"] for model in listed] == [MODEL_ID, "sql", "org/chat"]
    assert listed[1] == {"id": "sql", **CARD}
    assert "parent" not in listed[0]
    assert one == {"id": "org/chat", **CARD}


async def test_an_admin_loads_and_unloads(tmp_path: Path) -> None:
    """What is loaded is served at once, and what is unloaded is not found any more."""
    async with client(tmp_path, entry("root", ADMIN), adapters=Shelf()) as http:
        http.headers.update(headers_of("root"))
        loaded = await http.post(LOAD, json={"lora_name": "new", "lora_path": "new-v1"})
        served = await http.post("/v1/chat/completions", json=CHAT_BODY | {"model": "new"})
        unloaded = await http.post(UNLOAD, json={"lora_name": "new"})
        gone = await http.post("/v1/chat/completions", json=CHAT_BODY | {"model": "new"})

    assert (loaded.status_code, loaded.json()) == (200, {"id": "new", **CARD})
    assert served.status_code == 200
    assert (unloaded.status_code, unloaded.json()) == (200, {"id": "new", "object": "model", "deleted": True})
    assert gone.status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (LOAD, {"lora_name": "x", "lora_path": "bad"}, 400, "lora_path"),
        (LOAD, {"lora_name": "x"}, 400, "lora_path"),
        (LOAD, {"lora_name": 1, "lora_path": "a"}, 400, "lora_name"),
        (LOAD, {"lora_name": "x", "lora_path": "a", "load_inplace": True}, 400, "load_inplace"),
        (LOAD, {"lora_name": "x", "lora_path": "a", "rank": 8}, 400, "rank"),
        (UNLOAD, {"lora_name": "other"}, 404, "lora_name"),
        (UNLOAD, {"lora_name": "sql", "lora_int_id": 1}, 400, "lora_int_id"),
    ],
)
async def test_what_is_wrong_is_named(tmp_path: Path, path: str, body: Json, status: int, param: str) -> None:
    """The field at fault, in the envelope."""
    async with client(tmp_path, entry("root", ADMIN), adapters=Shelf()) as http:
        answer = await http.post(path, json=body, headers=headers_of("root"))

    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
async def test_nobody_else_may(tmp_path: Path, path: str) -> None:
    """Not with another key, not without one, and nobody at all where no keys are set."""
    shelf = Shelf()
    body = {"lora_name": "sql", "lora_path": "a"} if path == LOAD else {"lora_name": "sql"}
    async with client(tmp_path, entry("alice"), adapters=shelf) as http:
        answers = [await http.post(path, json=body, headers=headers_of("alice")), await http.post(path, json=body)]

    assert [answer.status_code for answer in answers] == [403, 401]
    assert (await post(path, body, adapters=shelf)).status_code == 403
    assert list(shelf.adapters) == ["sql", "org/chat"]


async def test_without_adapters_there_are_no_such_routes() -> None:
    """A server that serves none has nothing to load them into."""
    assert (await post(LOAD, {})).json()["error"]["code"] == "unknown_url"
