"""One choice of an answer: tokens in, pieces of text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.text.detokenizer import Detokenizer
from service.text.stop import StopStrings
from service.text.tokenizer import Tokenizer
from service.types import FinishReason, TokenEvent, TokenLogprob


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """Where the text of a choice ends, and how it begins.

    Stop strings are looked for after `min_tokens` tokens; what ends the text (a stop string or a stop token) is part of
    it only with `include_stop`. `continues_text`: the text goes on where the prompt ends, so a leading space is kept.
    `shown_token_ids` are special tokens that are part of the text all the same.
    """

    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    include_stop: bool = False
    continues_text: bool = False
    shown_token_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What there is to show since the last piece of this choice.

    `token_ids`, `logprobs` (empty if not asked for, None for a token that nothing precedes) and `text_offsets`
    (characters from the start of the choice's text to the token's) are aligned. Its text may come later. `stop_string`
    is the one that ended the choice, if one did.
    """

    choice: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob | None, ...] = ()
    text_offsets: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop_string: str | None = None


class Choice:
    """The text of one sequence as it grows. `finish_reason` is None until the choice is complete."""

    def __init__(self, index: int, tokenizer: Tokenizer, rules: TextRules) -> None:
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self._index = index
        self._rules = rules
        self._detokenizer = Detokenizer(
            tokenizer, continues_text=rules.continues_text, shown_token_ids=rules.shown_token_ids
        )
        self._stops = StopStrings(rules.stop)
        self._num_chars = 0

    def echo(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None]) -> Piece:
        """Begin the text with the prompt. Stop strings are not looked for in it."""
        offsets, text = [], ""
        for token_id in token_ids:
            offsets.append(self._num_chars)
            text += self._detokenize(token_id)
        return Piece(
            choice=self._index,
            text=text,
            token_ids=tuple(token_ids),
            logprobs=tuple(logprobs),
            text_offsets=tuple(offsets),
        )

    def push(self, event: TokenEvent) -> Piece:
        """Take the tokens of `event`, up to the one that completes a stop string: later ones do not count."""
        assert self.finish_reason is None, "a finished choice takes no more tokens"
        num_before = self.num_tokens
        offsets, text = [], ""
        for position, token_id in enumerate(event.token_ids, start=1):
            offsets.append(self._num_chars)
            self.num_tokens += 1
            ends = event.finish_reason is FinishReason.STOP and position == len(event.token_ids)
            if not ends or self._rules.include_stop:
                text += self._show(self._detokenize(token_id))
            if self._stops.matched is not None:
                break
        else:
            if event.finish_reason is not None:
                text += self._show(self._detokenizer.finish())
                text += self._stops.finish()
                self.finish_reason = event.finish_reason
        if self._stops.matched is not None:
            self.finish_reason = FinishReason.STOP
            text += self._stops.matched if self._rules.include_stop else ""
        num_taken = self.num_tokens - num_before
        return Piece(
            choice=self._index,
            text=text,
            token_ids=event.token_ids[:num_taken],
            logprobs=event.logprobs[:num_taken],
            text_offsets=tuple(offsets),
            finish_reason=self.finish_reason,
            stop_string=self._stops.matched,
        )

    def _detokenize(self, token_id: int) -> str:
        text = self._detokenizer.push(token_id)
        self._num_chars += len(text)
        return text

    def _show(self, text: str) -> str:
        return text if self.num_tokens <= self._rules.min_tokens else self._stops.push(text)
