"""A chat whose model may call tools: its text as content and calls, in bodies and streams."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable

from typing_extensions import override

from service.api.choice import Piece
from service.api.logs import Tally
from service.api.render import ChatRenderer, Head, Json, StreamUsage
from service.api.tools import ToolUse
from service.text.tokenizer import Tokenizer
from service.text.tool_calls import ToolCallReader, ToolDelta
from service.types import FinishReason

NUM_ID_CHARS = 9  # the one length that Mistral's templates accept when a call is sent back


class ToolChatRenderer(ChatRenderer):
    """A call is a delta with its id and name, then deltas with pieces of its arguments."""

    def __init__(
        self, head: Head, tokenizer: Tokenizer, use: ToolUse, *, with_logprobs: bool, stream_usage: StreamUsage
    ) -> None:
        super().__init__(head, tokenizer, with_logprobs=with_logprobs, stream_usage=stream_usage)
        self._use = use
        self._readers = defaultdict[int, ToolCallReader](self._reader)

    @override
    def events(self, piece: Piece, tally: Tally) -> bytes:
        reader = self._readers[piece.choice]
        deltas = [_streamed(delta) for delta in _read(reader, piece.text, is_last=piece.finish_reason is not None)]
        logprobs = self._logprobs(piece) if self._with_logprobs and piece.logprobs else None
        data = self._begin(piece.choice, tally)
        for delta in deltas or ([{}] if logprobs else []):
            choice = {"index": piece.choice, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            data += self._chunk(choice, tally)
            logprobs = None
        if piece.finish_reason is not None:
            ending = self._ending(piece.choice, piece.finish_reason)
            data += self._chunk({**ending, "finish_reason": _reason(piece.finish_reason, reader)}, tally)
        return data

    @override
    def _whole(self, index: int, text: str, logprobs: Json | None, reason: FinishReason | None) -> Json:
        reader = self._reader()
        deltas = _read(reader, text, is_last=True)
        content = "".join(delta.content for delta in deltas)
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if calls := _calls(deltas):
            message |= {"content": content or None, "tool_calls": calls}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": _reason(reason, reader)}

    def _reader(self) -> ToolCallReader:
        return ToolCallReader(self._use.form, self._use.names)


def new_call_id() -> str:
    return uuid.uuid4().hex[:NUM_ID_CHARS]


def _read(reader: ToolCallReader, text: str, *, is_last: bool) -> list[ToolDelta]:
    return reader.push(text) + (reader.finish() if is_last else [])


def _reason(reason: FinishReason | None, reader: ToolCallReader) -> str | None:
    """Calls that were cut are not to be executed: then the reason is why they were."""
    return "tool_calls" if reason is FinishReason.STOP and reader.has_called else reason


def _streamed(delta: ToolDelta) -> Json:
    if delta.call is None:
        return {"content": delta.content}
    if delta.name is None:
        return {"tool_calls": [{"index": delta.call, "function": {"arguments": delta.arguments}}]}
    return {"tool_calls": [{"index": delta.call, **_call(delta.name, "")}]}


def _calls(deltas: Iterable[ToolDelta]) -> list[Json]:
    names = [delta.name for delta in deltas if delta.name is not None]
    arguments = ["".join(delta.arguments for delta in deltas if delta.call == call) for call in range(len(names))]
    return [_call(name, text) for name, text in zip(names, arguments, strict=True)]


def _call(name: str, arguments: str) -> Json:
    return {
        "id": new_call_id(),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
