"""Server-sent events as OpenAI-compatible servers stream them: bytes in, parsed chunks out.

Follows the WHATWG rules for `data`, comments and line ends (LF, CRLF, CR); what they would silently drop is reported as
malformed, because a client that counts tokens must not lose any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

KNOWN_FIELDS = frozenset({b"data", b"event", b"id", b"retry"})


class MalformedStreamError(Exception):
    """The bytes are not the stream that the protocol asks for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server states them; `cached_tokens` is None when it does not say."""

    prompt_tokens: int
    output_tokens: int
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event. `text` is new output ("" for none); `error` is the message of an error sent in mid-stream."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    error: str | None = None
    error_code: str | None = None
    is_done: bool = False


class EventParser:
    """Feed bytes as they come; `feed` returns the payloads of the events that they complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Raises MalformedStreamError at a line that is neither a field nor a comment."""
        payloads: list[bytes] = []
        buffer = self._buffer + data
        # A CR at the very end may be half of a CRLF: it waits for the next byte.
        held = b"\r" if buffer.endswith(b"\r") else b""
        *lines, rest = buffer[: len(buffer) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._buffer = rest + held
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                payloads.append(b"\n".join(self._data))
                self._data.clear()
        return payloads

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name and name not in KNOWN_FIELDS:
            raise MalformedStreamError(f"not a server-sent event: {line[:60]!r}")

    @property
    def has_unfinished_event(self) -> bool:
        """Whether the stream, if it ends here, ends inside an event."""
        return bool(self._data or self._buffer.strip())


def parse_chunk(payload: bytes) -> Chunk:
    """One event's payload. Raises MalformedStreamError when it is not what a completion stream holds."""
    if payload == b"[DONE]":
        return Chunk(is_done=True)
    try:
        body = json.loads(payload)
        if error := body.get("error"):
            message = error.get("message", "") if isinstance(error, dict) else error
            code = error.get("code") or error.get("type") if isinstance(error, dict) else None
            return Chunk(error=str(message) or "no message", error_code=None if code is None else str(code))
        usage = _usage(body.get("usage"))
        choices = body.get("choices") or ()
        if not choices:
            return Chunk(usage=usage)
        choice = choices[0]
        reason = choice.get("finish_reason")
        return Chunk(text=_text(choice), finish_reason=None if reason is None else str(reason), usage=usage)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise MalformedStreamError(f"not a completion chunk: {payload[:60]!r}") from error


def _text(choice: dict[str, Any]) -> str:
    """Output of a chat or a text completion; reasoning and tool calls are output too."""
    delta = choice.get("delta")
    if delta is None:
        return str(choice.get("text") or "")
    text = str(delta.get("content") or delta.get("reasoning_content") or "")
    if not text and delta.get("tool_calls"):
        return json.dumps(delta["tool_calls"])
    return text


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if usage is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Usage(
        int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0), None if cached is None else int(cached)
    )
