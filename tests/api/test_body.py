"""Bodies: how large they may be, and what of them is JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from service.api.intake import Intake
from tests.api.fakes import CHAT, COMPLETIONS, ScriptedBackend, client_of, complaint, post, say


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b'{"prompt": 01}', b"[" * 100_000]
)
async def test_what_is_no_json(body: bytes) -> None:
    """Malformed, cut, wrongly encoded and hostile JSON is a 400 that says where."""
    answer = await post(COMPLETIONS, body)
    message = answer.json()["error"]["message"]

    assert answer.status_code == 400
    assert answer.json() == complaint(message, None)
    assert message.startswith("We could not parse the JSON body of your request. (")
    assert " at line 1 column " in message


async def test_json_that_is_no_object() -> None:
    """The body must be an object."""
    answer = await post(CHAT, b"[1]")

    assert answer.json() == complaint("The body of your request must be a JSON object.", None)


async def test_a_million_unknown_fields_cost_one_answer() -> None:
    """A body that is wrong everywhere is refused without a report of every place."""
    body = b"{" + b",".join(b'"f%d":1' % number for number in range(200_000)) + b"}"
    answer = await post(CHAT, body)

    assert answer.json() == complaint("The request is wrong in more than a thousand places.", None)


async def test_the_first_wrong_element_of_a_long_array_is_enough() -> None:
    """Elements after the first wrong one are not looked at."""
    answer = await post(COMPLETIONS, {"prompt": [1, *["x"] * 100_000]})

    assert answer.json()["error"]["param"] == "prompt[1]"


async def test_the_body_limit() -> None:
    """A body larger than the limit is a 413, in one part or in many; one of exactly the limit is read."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 50

    body = json.dumps({"prompt": "a"}).encode().ljust(100)
    async with client_of(ScriptedBackend(), intake=Intake(100)) as client:
        headers = {"content-type": "application/json"}
        fits = await client.post(COMPLETIONS, content=body, headers=headers)
        whole = await client.post(COMPLETIONS, content=body + b" ", headers=headers)
        streamed = await client.post(COMPLETIONS, content=chunks(), headers=headers)

    assert fits.status_code == 200
    expected = complaint("The request body is larger than the limit of 100 bytes.", None, "request_too_large")
    assert (whole.status_code, whole.json()) == (413, expected)
    assert (streamed.status_code, streamed.json()) == (413, expected)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        (None, 200),
        ("application/x-www-form-urlencoded", 415),
        ("text/plain", 415),
    ],
)
async def test_content_types(content_type: str | None, status: int) -> None:
    """A body that is declared as anything but JSON is a 415; undeclared, it is taken for JSON."""
    headers = {} if content_type is None else {"content-type": content_type}
    async with client_of(ScriptedBackend(say("x"))) as client:
        answer = await client.post(COMPLETIONS, content=b'{"prompt": "a"}', headers=headers)

    assert answer.status_code == status
    if status == 415:
        message = "Unsupported content type: send JSON with the header Content-Type: application/json."
        assert answer.json() == complaint(message, None, "unsupported_media_type")
