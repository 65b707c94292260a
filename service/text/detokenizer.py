"""Token ids to text, one token at a time.

The pieces of `push` and `finish` concatenate to the text of the whole sequence, whatever the ids: `Tokenizer.decode`
is this class run to its end. An incomplete UTF-8 character is held back (at most three bytes) until its last byte
comes; what turns out to be no UTF-8, or is still incomplete at `finish`, becomes U+FFFD as in
`bytes.decode(errors="replace")`.
"""

from __future__ import annotations

import codecs
from typing import Protocol


class TokenBytes(Protocol):
    """What is needed of a tokenizer."""

    @property
    def strips_leading_space(self) -> bool:
        """The encoder puts a space before every text (SentencePiece), so decoding takes one away again."""
        ...

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes: ...


class Detokenizer:
    """The text of one growing sequence.

    `continues_text` says that the tokens follow a prompt rather than begin a text: then a leading space is the model's
    word boundary and stays, also where decoding a whole text would strip it. `shown_token_ids` are special tokens that
    are part of the text all the same.
    """

    def __init__(
        self,
        tokenizer: TokenBytes,
        *,
        skip_special_tokens: bool = True,
        shown_token_ids: frozenset[int] = frozenset(),
        continues_text: bool = False,
    ) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._skip_special_tokens = skip_special_tokens
        self._shown_token_ids = shown_token_ids
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strip_space = tokenizer.strips_leading_space and not continues_text

    def push(self, token_id: int) -> str:
        """The text that is certain now; empty for special tokens and while a character is incomplete."""
        is_skipped = self._skip_special_tokens and token_id not in self._shown_token_ids
        data = self._token_bytes(token_id, skip_special_tokens=is_skipped)
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decode(data)

    def finish(self) -> str:
        """What was held back: U+FFFD for an incomplete character, else nothing. The sequence ends here."""
        return self._decode(b"", final=True)
