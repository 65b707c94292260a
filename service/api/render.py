"""Pieces of text to the JSON of OpenAI's chat and text completions: whole bodies, and the events of a stream.

Both are made of the same pieces, so a stream adds up to the body.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import ClassVar, Protocol

from typing_extensions import override

from service.api import sse
from service.api.choice import Piece
from service.api.errors import Failure
from service.api.logprobs import chat_logprobs, completion_logprobs
from service.api.logs import Tally
from service.text.tokenizer import Tokenizer
from service.types import FinishReason

Json = dict[str, object]
_MARK = "\0text\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every chunk of an answer repeats. `created` is a Unix time."""

    answer_id: str
    created: int
    model: str
    version: str

    def fields(self, kind: str) -> Json:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"headcount-{self.version}",
        }


class StreamUsage(Enum):
    """Which chunks of a stream tell the usage. With LAST it is an extra one, and the others have `usage: null`."""

    NONE = 0
    LAST = 1
    EVERY = 2  # the usage so far in each chunk, and the extra one too


class Renderer(Protocol):
    """Writes one answer, whole or as the events of a stream, as its API has it. `tally` counts as far as the pieces."""

    def body(self, pieces: Iterable[Piece], tally: Tally) -> Json:
        """The answer to a request that is not streamed."""
        ...

    def events(self, piece: Piece, tally: Tally) -> bytes:
        """The events that show `piece`: none while its text is held back."""
        ...

    def closing(self, tally: Tally) -> bytes:
        """The events that end a stream in which every choice is finished."""
        ...

    def failing(self, failure: Failure) -> bytes:
        """The events that end a stream which fails."""
        ...


class ChoicesRenderer(ABC):
    """What chat and text completions have in common: an answer is a list of choices."""

    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, head: Head, tokenizer: Tokenizer, *, with_logprobs: bool, stream_usage: StreamUsage) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._stream_usage = stream_usage
        self._templates: dict[int, tuple[bytes, bytes]] = {}

    @abstractmethod
    def _opening(self, index: int) -> Json | None:
        """The choice of the chunk that comes before any text, if there is one."""

    @abstractmethod
    def _part(self, index: int, text: str, logprobs: Json | None) -> Json:
        """The choice of a chunk that brings text."""

    @abstractmethod
    def _ending(self, index: int, reason: FinishReason) -> Json:
        """The choice of the chunk that ends it."""

    @abstractmethod
    def _whole(self, index: int, text: str, logprobs: Json | None, reason: FinishReason | None) -> Json:
        """A choice of a body."""

    @abstractmethod
    def _logprobs(self, piece: Piece) -> Json: ...

    def body(self, pieces: Iterable[Piece], tally: Tally) -> Json:
        """The answer to a request that is not streamed."""
        by_choice: dict[int, list[Piece]] = {}
        for piece in pieces:
            by_choice.setdefault(piece.choice, []).append(piece)
        choices = []
        for index, parts in sorted(by_choice.items()):
            whole = _join(parts)
            logprobs = self._logprobs(whole) if self._with_logprobs else None
            choices.append(self._whole(index, whole.text, logprobs, whole.finish_reason))
        return {**self._head.fields(self.kind), "choices": choices, "usage": _usage(tally)}

    def events(self, piece: Piece, tally: Tally) -> bytes:
        """The events that show `piece`: none while its text is held back."""
        data = self._begin(piece.choice, tally)
        if self._with_logprobs and piece.logprobs:
            data += self._chunk(self._part(piece.choice, piece.text, self._logprobs(piece)), tally)
        elif piece.text and self._stream_usage is StreamUsage.EVERY:
            data += self._chunk(self._part(piece.choice, piece.text, None), tally)
        elif piece.text:
            # The path of nearly every token: nothing but its text is serialised.
            before, after = self._templates[piece.choice]
            data += before + json.dumps(piece.text).encode() + after
        if piece.finish_reason is not None:
            data += self._chunk(self._ending(piece.choice, piece.finish_reason), tally)
        return data

    def _begin(self, index: int, tally: Tally) -> bytes:
        """What precedes the first piece of a choice."""
        if index in self._templates:
            return b""
        self._templates[index] = self._template(index)
        opening = self._opening(index)
        return self._chunk(opening, tally) if opening else b""

    def closing(self, tally: Tally) -> bytes:
        """The usage, if it was asked for, and `[DONE]`."""
        if self._stream_usage is StreamUsage.NONE:
            return sse.DONE
        return sse.event({**self._head.fields(self.chunk_kind), "choices": [], "usage": _usage(tally)}) + sse.DONE

    def failing(self, failure: Failure) -> bytes:
        return sse.event(failure.envelope) + sse.DONE

    def _chunk(self, choice: Json, tally: Tally | None = None) -> bytes:
        usage: Json = {} if self._stream_usage is StreamUsage.NONE else {"usage": None}
        if self._stream_usage is StreamUsage.EVERY and tally is not None:
            usage = {"usage": _usage(tally)}
        return sse.event({**self._head.fields(self.chunk_kind), "choices": [choice], **usage})

    def _template(self, index: int) -> tuple[bytes, bytes]:
        before, after = self._chunk(self._part(index, _MARK, None)).split(json.dumps(_MARK).encode())
        return before, after


class ChatRenderer(ChoicesRenderer):
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _opening(self, index: int) -> Json:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _part(self, index: int, text: str, logprobs: Json | None) -> Json:
        return {"index": index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None}

    def _ending(self, index: int, reason: FinishReason) -> Json:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason.value}

    def _whole(self, index: int, text: str, logprobs: Json | None, reason: FinishReason | None) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, piece: Piece) -> Json:
        return chat_logprobs(self._tokenizer, piece)


class CompletionRenderer(ChoicesRenderer):
    kind = chunk_kind = "text_completion"

    @override
    def _opening(self, index: int) -> None:
        return None

    def _part(self, index: int, text: str, logprobs: Json | None) -> Json:
        return self._whole(index, text, logprobs, None)

    def _ending(self, index: int, reason: FinishReason) -> Json:
        return self._whole(index, "", None, reason)

    def _whole(self, index: int, text: str, logprobs: Json | None, reason: FinishReason | None) -> Json:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, piece: Piece) -> Json:
        return completion_logprobs(self._tokenizer, piece)


def _join(parts: Sequence[Piece]) -> Piece:
    return Piece(
        choice=parts[0].choice,
        text="".join(part.text for part in parts),
        token_ids=tuple(chain.from_iterable(part.token_ids for part in parts)),
        logprobs=tuple(chain.from_iterable(part.logprobs for part in parts)),
        text_offsets=tuple(chain.from_iterable(part.text_offsets for part in parts)),
        finish_reason=parts[-1].finish_reason,
    )


def _usage(tally: Tally) -> Json:
    return {
        "prompt_tokens": tally.num_prompt_tokens,
        "completion_tokens": tally.num_output_tokens,
        "total_tokens": tally.num_prompt_tokens + tally.num_output_tokens,
        "prompt_tokens_details": {"cached_tokens": tally.num_cached_tokens},
    }
