"""Streams and bodies in one form, to be compared."""

from __future__ import annotations

import json

import httpx

from tests.api.fakes import Json


def events_of(answer: httpx.Response) -> list[Json]:
    """The data of a stream's events, which must end with [DONE]."""
    *events, done, nothing = answer.text.split("\n\n")

    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def added_up(chunks: list[Json]) -> Json:
    """The body that a stream of chunks amounts to."""
    choices: dict[int, Json] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            is_chat = "delta" in part
            whole = choices.setdefault(part["index"], {"text": "", "logprobs": None, "finish_reason": None})

            assert whole["finish_reason"] is None, "a choice goes on after its end"
            whole["text"] += part["delta"].get("content", "") if is_chat else part["text"]
            whole["finish_reason"] = part["finish_reason"]
            if part["logprobs"]:
                have = whole["logprobs"] or {
                    name: [] if isinstance(value, list) else value for name, value in part["logprobs"].items()
                }
                whole["logprobs"] = {
                    name: have[name] + value if isinstance(value, list) else value
                    for name, value in part["logprobs"].items()
                }
    return {"choices": [choices[index] for index in sorted(choices)], "usage": chunks[-1]["usage"]}


def essence(body: Json) -> Json:
    """The same of a body."""
    choices = [
        {
            "text": choice["message"]["content"] if "message" in choice else choice["text"],
            "logprobs": choice["logprobs"],
            "finish_reason": choice["finish_reason"],
        }
        for choice in body["choices"]
    ]
    return {"choices": choices, "usage": body["usage"]}


def named_events_of(answer: httpx.Response) -> list[Json]:
    """The data of a stream's events, each of which must be called by its type."""
    assert answer.status_code == 200, answer.text
    *events, nothing = answer.text.split("\n\n")
    parsed = []
    for event in events:
        name, data = event.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))

        assert name == f"event: {parsed[-1]['type']}"
    assert nothing == ""
    return parsed
