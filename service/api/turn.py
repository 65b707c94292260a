"""The assistant's turn as it grows: text, then calls of tools if there are any to call."""

from __future__ import annotations

from service.api.choice import Piece
from service.api.tools import ToolUse
from service.text.tool_calls import ToolCallReader, ToolDelta
from service.types import FinishReason


class Turn:
    """Reads the pieces of one choice. `reason` is None until it is complete."""

    def __init__(self, use: ToolUse | None) -> None:
        self.reason: FinishReason | None = None
        self.stop_string: str | None = None
        self._reader = None if use is None else ToolCallReader(use.form, use.names)

    @property
    def has_called(self) -> bool:
        """Whether the turn ends with calls that are to be executed: those of a turn that was cut are not."""
        return self._reader is not None and self._reader.has_called and self.reason is FinishReason.STOP

    def read(self, piece: Piece) -> list[ToolDelta]:
        self.reason, self.stop_string = piece.finish_reason, piece.stop_string
        if self._reader is None:
            return [ToolDelta(content=piece.text)] if piece.text else []
        return self._reader.push(piece.text) + (self._reader.finish() if self.reason is not None else [])
