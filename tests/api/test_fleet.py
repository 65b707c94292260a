"""`/fleet` and `/fleet/decisions`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from service.api.app import create_app
from service.errors import UnavailableError
from tests.api.fakes import ScriptedBackend, client_of, make_state, serving


class View:
    """A fleet that decides each time it is asked, until it falls silent."""

    def __init__(self) -> None:
        self.made = [{"number": number, "current": 1, "desired": 1 + (number == 2)} for number in (1, 2, 3)]
        self.is_silent = False

    async def status(self) -> Mapping[str, Any]:
        if self.is_silent:
            raise UnavailableError("The autoscaler does not answer at the moment.")
        return {"desired": 2}

    async def decisions(self, since: int, limit: int, *, only_changes: bool) -> Sequence[Mapping[str, Any]]:
        found = [each for each in self.made if each["number"] > since]
        if only_changes:
            found = [each for each in found if each["desired"] != each["current"]]
        return found[-limit:]


def client(view: View) -> httpx.AsyncClient:
    return client_of(ScriptedBackend(), fleet=view)


async def test_the_fleet_is_shown() -> None:
    """What the view says, as JSON."""
    async with client(View()) as http:
        answer = await http.get("/fleet")
    assert (answer.status_code, answer.json()) == (200, {"desired": 2})


@pytest.mark.parametrize(
    ("query", "numbers"),
    [("", [1, 2, 3]), ("?limit=2", [2, 3]), ("?since=2", [3]), ("?changes=true", [2]), ("?changes=0&limit=1", [3])],
)
async def test_decisions_are_chosen(query: str, numbers: list[int]) -> None:
    """The latest, above a number, or only changes."""
    async with client(View()) as http:
        answer = await http.get(f"/fleet/decisions{query}")
    assert [each["number"] for each in answer.json()["decisions"]] == numbers


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=3601", "limit"),
        ("limit=many", "limit"),
        ("since=-1", "since"),
        ("changes=maybe", "changes"),
        ("stream=2", "stream"),
        ("last=3", "last"),
    ],
)
async def test_mistakes_are_named(query: str, param: str) -> None:
    """400 with the parameter at fault, unknown ones too."""
    async with client(View()) as http:
        answer = await http.get(f"/fleet/decisions?{query}")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_silent_autoscaler_is_said_to_be_one() -> None:
    """503 in our envelope."""
    view = View()
    view.is_silent = True
    async with client(view) as http:
        answer = await http.get("/fleet")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, UnavailableError.label)


async def test_a_single_replica_has_no_view_of_the_fleet() -> None:
    """404 where nobody can tell."""
    async with client_of(ScriptedBackend()) as http:
        assert (await http.get("/fleet")).status_code == 404


async def test_the_stream_goes_on_with_what_comes() -> None:
    """First what there is, then each new decision, once."""
    view = View()
    numbers = []
    async for decision in _streamed(view):
        numbers.append(decision["number"])
        if len(numbers) == 3:
            view.made.append({"number": 4, "current": 1, "desired": 3})
        if len(numbers) == 4:
            break
    assert numbers == [1, 2, 3, 4]


async def _streamed(view: View) -> Any:
    """The decisions of a stream over a real socket: the in-process transport waits for the end of an answer."""
    app = create_app(make_state(ScriptedBackend(), fleet=view))
    async with (
        serving(app) as port,
        httpx.AsyncClient(trust_env=False) as http,
        http.stream("GET", f"http://127.0.0.1:{port}/fleet/decisions?stream=true") as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))
