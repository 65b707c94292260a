"""Pieces of text to the JSON of Anthropic's messages. A body is what the events of a stream add up to."""

from __future__ import annotations

import json
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


class MessageRenderer:
    """Implements `Renderer`: one message of blocks, a text and then calls of tools."""

    def __init__(self, answer_id: str, model: str, use: ToolUse | None) -> None:
        self._head: Json = {"id": answer_id, "type": "message", "role": "assistant", "model": model}
        self._turn = Turn(use)
        self._blocks: list[Json] = []
        self._parts: list[str] = []  # of the block that is open: its text, or its input as JSON
        self._has_begun = False

    def body(self, pieces: Iterable[Piece], tally: Tally) -> Json:
        for piece in pieces:
            self.events(piece, tally)
        # The call of a message that was cut is not whole: nobody should run it with half of its input.
        content = [block for block in self._blocks if block.get("input") is not None or block["type"] == "text"]
        return {**self._head, "content": content, **self._ending(), "usage": _usage(tally)}

    def events(self, piece: Piece, tally: Tally) -> bytes:
        data = b"" if self._has_begun else self._begin(tally)
        for delta in self._turn.read(piece):
            data += self._show(delta)
        return data + (self._close() if piece.finish_reason is not None else b"")

    def closing(self, tally: Tally) -> bytes:
        return sse.named_event(
            {"type": "message_delta", "delta": self._ending(), "usage": _usage(tally)}
        ) + sse.named_event({"type": "message_stop"})

    def failing(self, failure: Failure) -> bytes:
        return sse.named_event(failure.anthropic_envelope)

    def _begin(self, tally: Tally) -> bytes:
        self._has_begun = True
        empty: Json = {"content": [], "stop_reason": None, "stop_sequence": None}
        message = {**self._head, **empty, "usage": _usage(tally)}
        return sse.named_event({"type": "message_start", "message": message}) + sse.named_event({"type": "ping"})

    def _show(self, delta: ToolDelta) -> bytes:
        if delta.call is None:
            data = b"" if self._blocks else self._open({"type": "text", "text": "", "citations": None})
            return data + self._grow(delta.content, {"type": "text_delta", "text": delta.content})
        if delta.name is not None:
            return self._open({"type": "tool_use", "id": new_call_id(), "name": delta.name, "input": {}})
        return self._grow(delta.arguments, {"type": "input_json_delta", "partial_json": delta.arguments})

    def _open(self, block: Json) -> bytes:
        data = self._close()
        self._blocks.append(block)
        return data + self._event("content_block_start", content_block=block)

    def _grow(self, part: str, delta: Json) -> bytes:
        self._parts.append(part)
        return self._event("content_block_delta", delta=delta)

    def _close(self) -> bytes:
        """End the block that is open, if one is."""
        if not self._blocks:
            return b""
        block, whole = self._blocks[-1], "".join(self._parts)
        self._parts = []
        if block["type"] == "text":
            block["text"] = whole
        else:
            block["input"] = _object(whole)
        return self._event("content_block_stop")

    def _event(self, kind: str, **fields: object) -> bytes:
        return sse.named_event({"type": kind, "index": len(self._blocks) - 1, **fields})

    def _ending(self) -> Json:
        turn = self._turn
        if turn.reason is FinishReason.LENGTH:
            reason = "max_tokens"
        elif turn.has_called:
            reason = "tool_use"
        else:
            reason = "end_turn" if turn.stop_string is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": turn.stop_string}


def _object(text: str) -> object:
    """The object that `text` is; None where it was cut."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _usage(tally: Tally) -> Json:
    """Of the prompt, what the prefix cache had is counted apart."""
    return {
        "input_tokens": tally.num_prompt_tokens - tally.num_cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tally.num_cached_tokens,
        "output_tokens": tally.num_output_tokens,
    }
