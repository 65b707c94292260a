"""Stop strings: end a text where one occurs, never show it, and hold back no more than what may become one.

The occurrence that counts is the one that is complete first (of several complete at once, the longest), as if the
text came character by character: so the result does not depend on how it is cut into pieces. Matching is on text,
never on token ids. One Knuth-Morris-Pratt automaton per stop string: O(1) amortised per character and stop string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import InvalidRequestError


def _borders(pattern: str) -> tuple[int, ...]:
    """borders[i] is the length of the longest proper prefix of pattern[: i + 1] that is also its suffix."""
    borders = [0] * len(pattern)
    matched = 0
    for index in range(1, len(pattern)):
        while matched and pattern[index] != pattern[matched]:
            matched = borders[matched - 1]
        if pattern[index] == pattern[matched]:
            matched += 1
        borders[index] = matched
    return tuple(borders)


@dataclass(slots=True)
class _Matcher:
    """`num_matched` is the length of the longest prefix of `pattern` that ends the text so far."""

    pattern: str
    borders: tuple[int, ...]
    num_matched: int = 0

    def advance(self, character: str) -> bool:
        """Take one more character of the text; True when it completes the pattern."""
        matched = self.num_matched
        while matched and character != self.pattern[matched]:
            matched = self.borders[matched - 1]
        if character == self.pattern[matched]:
            matched += 1
        self.num_matched = matched
        return matched == len(self.pattern)


class StopStrings:
    """Watches one growing text for any of `stops`. Raises InvalidRequestError for an empty stop string.

    `matched` is the stop string that ended the text, or None so far.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise InvalidRequestError("A stop string must not be empty.", param="stop")
        # Longest first: of the stop strings that one character completes, the longest begins earliest.
        self._matchers = [_Matcher(stop, _borders(stop)) for stop in sorted(set(stops), key=len, reverse=True)]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """What may be shown now, given `text` as the next piece; nothing once a stop string has matched."""
        if self.matched is not None:
            return ""
        text = self._held + text
        for index in range(len(self._held), len(text)):
            completed = self._advance(text[index])
            if completed is not None:
                self.matched, self._held = completed, ""
                return text[: index + 1 - len(completed)]
        num_held = max((matcher.num_matched for matcher in self._matchers), default=0)
        num_shown = len(text) - num_held
        self._held = text[num_shown:]
        return text[:num_shown]

    def finish(self) -> str:
        """The text held back that did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        completed = [matcher.pattern for matcher in self._matchers if matcher.advance(character)]
        return completed[0] if completed else None
