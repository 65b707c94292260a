"""Pieces of text to the JSON of OpenAI's responses. A body is what the events of a stream add up to."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from service.api import sse
from service.api.choice import Piece
from service.api.errors import Failure
from service.api.logs import Tally
from service.api.render import Json
from service.api.render_tools import new_call_id
from service.api.tools import ToolUse
from service.api.turn import Turn
from service.text.tool_calls import ToolDelta
from service.types import FinishReason


class ResponseRenderer:
    """Implements `Renderer`: a list of items, a message and then calls of functions.

    `head` is what every snapshot of the response repeats.
    """

    def __init__(self, head: Json, use: ToolUse | None) -> None:
        self._head = head
        self._turn = Turn(use)
        self._items: list[Json] = []
        self._parts: list[str] = []  # of the item that is open: its text, or its arguments
        self._num_events = 0

    def body(self, pieces: Iterable[Piece], tally: Tally) -> Json:
        for piece in pieces:
            self.events(piece, tally)
        return self._ended(tally)

    def events(self, piece: Piece, tally: Tally) -> bytes:  # noqa: ARG002 - usage comes at the end
        data = b""
        if self._num_events == 0:
            begun = self._snapshot("in_progress")
            data = self._event("response.created", response=begun)
            data += self._event("response.in_progress", response=begun)
        for delta in self._turn.read(piece):
            data += self._show(delta)
        if piece.finish_reason is None:
            return data
        if not self._items:
            data += self._open_message()
        return data + self._close("incomplete" if piece.finish_reason is FinishReason.LENGTH else "completed")

    def closing(self, tally: Tally) -> bytes:
        response = self._ended(tally)
        return self._event(f"response.{response['status']}", response=response)

    def failing(self, failure: Failure) -> bytes:
        error = {"code": "server_error", "message": failure.message}
        return self._event("response.failed", response=self._snapshot("failed", error=error))

    def _show(self, delta: ToolDelta) -> bytes:
        if delta.call is None:
            data = b"" if self._items else self._open_message()
            return data + self._grow("response.output_text.delta", delta.content, content_index=0, logprobs=[])
        if delta.name is None:
            return self._grow("response.function_call_arguments.delta", delta.arguments)
        call: Json = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": new_call_id(),
            "name": delta.name,
            "arguments": "",
        }
        return self._close("completed") + self._open(call)

    def _open_message(self) -> bytes:
        message: Json = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        return self._open(message) + self._item_event("response.content_part.added", content_index=0, part=_text(""))

    def _open(self, item: Json) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _grow(self, kind: str, part: str, **fields: object) -> bytes:
        self._parts.append(part)
        return self._item_event(kind, delta=part, **fields)

    def _close(self, status: str) -> bytes:
        """End the item that is open, if one is."""
        if not self._items:
            return b""
        item, whole = self._items[-1], "".join(self._parts)
        self._parts = []
        item["status"] = status
        if item["type"] == "message":
            part = _text(whole)
            item["content"] = [part]
            data = self._item_event("response.output_text.done", content_index=0, text=whole, logprobs=[])
            data += self._item_event("response.content_part.done", content_index=0, part=part)
        else:
            item["arguments"] = whole
            data = self._item_event("response.function_call_arguments.done", name=item["name"], arguments=whole)
        return data + self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _item_event(self, kind: str, **fields: object) -> bytes:
        return self._event(kind, item_id=self._items[-1]["id"], output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, **fields: object) -> bytes:
        data = sse.named_event({"type": kind, "sequence_number": self._num_events, **fields})
        self._num_events += 1
        return data

    def _ended(self, tally: Tally) -> Json:
        usage = _usage(tally)
        if self._turn.reason is FinishReason.LENGTH:
            return self._snapshot("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=usage)
        return self._snapshot("completed", usage=usage)

    def _snapshot(self, status: str, **changes: object) -> Json:
        empty: Json = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": self._items, **empty, **changes}


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(tally: Tally) -> Json:
    return {
        "input_tokens": tally.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": tally.num_cached_tokens},
        "output_tokens": tally.num_output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tally.num_prompt_tokens + tally.num_output_tokens,
    }
