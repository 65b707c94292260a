"""The text of a model that may call tools, as content and calls, while it grows.

The grammar of `service.text.tool_format` sees to it that calls are well formed. Content is what comes before the first
call; arguments are passed on as the model writes them, so that their pieces add up to JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from service.text.tool_format import ToolFormat


class ToolDelta(NamedTuple):
    """More content; or more of call number `call`: its `name`, with which it begins, or a piece of its arguments."""

    content: str = ""
    call: int | None = None
    name: str | None = None
    arguments: str = ""


class ToolCallReader:
    """Reads one output. What the deltas add up to does not depend on how the text is cut."""

    def __init__(self, form: ToolFormat, names: Iterable[str]) -> None:
        openings = {form.opening_of(name): name for name in names}
        self._first = {form.marker + form.before + opening: name for opening, name in openings.items()}
        self._next = {form.between + opening: name for opening, name in openings.items()}
        self._is_anchored = not form.marker
        self._held = ""
        self._has_content = False
        self._num_calls = 0
        self._arguments: _ObjectScanner | None = None

    @property
    def has_called(self) -> bool:
        """Whether there are calls, and the last one has all its arguments."""
        return self._num_calls > 0 and self._arguments is None

    def push(self, text: str) -> list[ToolDelta]:
        """What is certain now, given `text` as the next piece."""
        self._held += text
        deltas: list[ToolDelta] = []
        while self._held:
            if self._arguments is not None:
                deltas.append(self._read_arguments(self._arguments))
                continue
            at, opening = self._find_opening()
            if at and not self._num_calls:
                deltas.append(ToolDelta(content=self._held[:at]))
                self._has_content = True
            self._held = self._held[at:]
            if opening is None:
                break
            self._held = self._held[len(opening) :]
            name = self._next[opening] if self._num_calls else self._first[opening]
            deltas.append(ToolDelta(call=self._num_calls, name=name))
            self._num_calls += 1
            self._arguments = _ObjectScanner()
        return deltas

    def finish(self) -> list[ToolDelta]:
        """What was held back of the content: the beginning of a call that did not become one."""
        return [ToolDelta(content=self._held)] if self._held and not self._num_calls else []

    def _read_arguments(self, scanner: _ObjectScanner) -> ToolDelta:
        end = scanner.end_in(self._held)
        arguments = self._held[:end]
        self._held = self._held[len(arguments) :]
        if end is not None:
            self._arguments = None
        return ToolDelta(call=self._num_calls - 1, arguments=arguments)

    def _find_opening(self) -> tuple[int, str | None]:
        """Where in the text held a call begins, and how; without how, where one may begin, or the end."""
        openings = self._next if self._num_calls else self._first
        first_character = next(iter(openings))[0]
        at = self._held.find(first_character)
        while at >= 0:
            if self._is_anchored and not self._num_calls and (at > 0 or self._has_content):
                break
            rest = self._held[at:]
            for opening in openings:
                if rest.startswith(opening):
                    return at, opening
            if any(opening.startswith(rest) for opening in openings):
                return at, None
            at = self._held.find(first_character, at + 1)
        return len(self._held), None


class _ObjectScanner:
    """Finds the end of a JSON object that is well formed."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def end_in(self, text: str) -> int | None:
        """The length of the part of `text`, the next piece, that belongs to the object; None when all does, and more is
        to come."""
        for position, character in enumerate(text, start=1):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_in_string:
                self._is_escaped = character == "\\"
                self._is_in_string = character != '"'
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return position
        return None
