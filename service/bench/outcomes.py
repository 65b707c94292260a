"""What becomes of a completion, as its client sees it: finished, refused, failed and said so, left, or unexplained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import httpx

PATH = "/v1/completions"
_REFUSALS = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class Outcome(StrEnum):
    FINISHED = "finished"  # all that was asked for, and an end that says so
    REFUSED = "refused"  # 429 or 503 in the envelope of errors, before anything was generated
    FAILED = "failed"  # another error, as answer or event, or a connection that broke: the client knows
    LEFT = "left"  # the client itself went
    UNEXPLAINED = "unexplained"  # everything else: what looks whole and is not, what never ends


@dataclass(frozen=True, slots=True)
class Ending:
    """How one request ended; `num_events` of its stream had come by then, `num_tokens` if it finished."""

    outcome: Outcome
    why: str = ""
    num_events: int = 0
    num_tokens: int = 0


async def complete(client: httpx.AsyncClient, body: Mapping[str, Any], *, leave_after: int | None = None) -> Ending:
    """Ask for exactly `max_tokens` tokens. With `leave_after` the client goes after so many events of the stream."""
    body = {**body, "ignore_eos": True}
    if body.get("stream"):
        body["stream_options"] = {"include_usage": True}
    reading = _Reading(body["max_tokens"], leave_after)
    try:
        async with client.stream("POST", PATH, json=body) as response:
            if response.status_code == HTTPStatus.OK and body.get("stream"):
                async for line in response.aiter_lines():
                    if reading.take(line):
                        break
                return reading.ending()
            await response.aread()
            return _whole(response, body["max_tokens"])
    except httpx.TimeoutException:
        return Ending(Outcome.UNEXPLAINED, "it did not end", reading.num_events)
    except httpx.TransportError as error:
        return Ending(Outcome.FAILED, type(error).__name__, reading.num_events)


def _whole(response: httpx.Response, max_tokens: int) -> Ending:
    if response.status_code == HTTPStatus.OK:
        num_tokens = response.json()["usage"]["completion_tokens"]
        if num_tokens == max_tokens:
            return Ending(Outcome.FINISHED, num_tokens=num_tokens)
        return Ending(Outcome.UNEXPLAINED, f"{num_tokens} tokens of {max_tokens}")
    kind = Outcome.REFUSED if response.status_code in _REFUSALS else Outcome.FAILED
    try:
        return Ending(kind, f"{response.status_code} {response.json()['error']['code']}")
    except ValueError:  # whose error it is, its text says
        return Ending(Outcome.FAILED, f"{response.status_code} {response.text[:40]!r}")


class _Reading:
    """A stream, line by line."""

    def __init__(self, max_tokens: int, leave_after: int | None) -> None:
        self._max_tokens = max_tokens
        self._leave_after = leave_after
        self._num_tokens = 0
        self._is_done = False
        self._error: str | None = None
        self.num_events = 0

    def take(self, line: str) -> bool:
        """Whether to leave now."""
        data = line.removeprefix("data: ")
        if not data:
            return False
        self.num_events += 1
        if data == "[DONE]":
            self._is_done = True
            return False
        event = json.loads(data)
        if "error" in event:
            self._error = str(event["error"]["code"])
        elif event.get("usage"):
            self._num_tokens = event["usage"]["completion_tokens"]
        return self.num_events == self._leave_after

    def ending(self) -> Ending:
        if self._error is not None:
            return Ending(Outcome.FAILED, f"event {self._error}", self.num_events)
        if self._is_done and self._num_tokens == self._max_tokens:
            return Ending(Outcome.FINISHED, "", self.num_events, self._num_tokens)
        if self.num_events == self._leave_after:
            return Ending(Outcome.LEFT, "", self.num_events)
        return Ending(Outcome.UNEXPLAINED, f"{self._num_tokens} tokens of {self._max_tokens}", self.num_events)
