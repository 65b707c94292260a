"""Text to token ids and back, for a Hugging Face directory or a GGUF file.

Encoding is done by the `tokenizers` library, decoding by our own `Detokenizer`, so that streamed and whole text are
the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from service.errors import InvalidRequestError
from service.text.chat_template import ChatTemplate
from service.text.detokenizer import Detokenizer
from service.text.gguf_tokenizer import read_gguf_tokenizer
from service.text.grammar import Grammars
from service.text.huggingface_tokenizer import read_huggingface_tokenizer
from service.text.parts import TokenizerParts
from service.text.vocabulary import read_vocabulary

_SENTINEL = "\x02"  # a character that no vocabulary merges with others


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model: a `.gguf` file or a Hugging Face directory. Raises ModelError."""
    read = read_gguf_tokenizer if path.suffix == ".gguf" else read_huggingface_tokenizer
    return Tokenizer(read(path))


class Tokenizer:
    """Immutable after construction (but for caches) and safe to use from several threads.

    Special tokens are those that the vocabulary marks so, and every token that ends a generation: never part of a text.
    A model may have more output rows than its tokenizer has tokens (padding): ids from `vocab_size` on add nothing to
    a text.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        # Some files carry the truncation or padding of their training run: a prompt is never cut in silence.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._vocabulary = read_vocabulary(parts.backend)
        self._special = self._vocabulary.special | parts.eos_token_ids
        self._visible_pieces = tuple(
            b"" if token_id in self._special else piece for token_id, piece in enumerate(self._vocabulary.pieces)
        )
        self.vocab_size = len(self._vocabulary.pieces)
        self.bos_token_id: int | None = parts.bos_token_id
        self.eos_token_ids: frozenset[int] = parts.eos_token_ids
        self.chat_template: ChatTemplate | None = parts.chat_template

    @property
    def strips_leading_space(self) -> bool:
        return self._vocabulary.strips_leading_space

    @cached_property
    def grammars(self) -> Grammars:
        """Takes 0.2 s the first time: call it from a thread. Raises InvalidRequestError when the model has no end."""
        return Grammars(
            self._vocabulary.pieces,
            self._special,
            self.eos_token_ids,
            self.encode_continuation,
        )

    def special_token_id(self, name: str) -> int | None:
        """The id of the special token of that name, if there is one."""
        token_id = self._backend.token_to_id(name)
        return token_id if token_id in self._special else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`; the model's begin (and end) tokens are added unless told otherwise.

        The names of special tokens in `text` become those tokens, as a rendered chat template needs it. The
        interpreter lock is free while it works: call it from a thread for long texts. Raises InvalidRequestError when
        `text` is no Unicode (a surrogate without its other half).
        """
        try:
            # The batch call is the one of the library's calls that releases the interpreter lock.
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise InvalidRequestError("The text has a surrogate without its other half: send valid Unicode.") from error
        return encoding.ids

    def encode_continuation(self, text: str) -> list[int]:
        """The token ids of `text` where it goes on from another, so that no space is put before it."""
        token_ids = self.encode(_SENTINEL + text, add_special_tokens=False)
        before = b""
        for position, token_id in enumerate(token_ids, start=1):
            before += self._vocabulary.pieces[token_id]
            if before in (_SENTINEL.encode(), b" " + _SENTINEL.encode()):
                return token_ids[position:]
        return self.encode(text, add_special_tokens=False)  # the sentinel is no token of its own here

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence: what a `Detokenizer` gives for its tokens one by one."""
        detokenizer = Detokenizer(self, skip_special_tokens=skip_special_tokens)
        return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()

    def token_bytes(self, token_id: int, *, skip_special_tokens: bool = True) -> bytes:
        """What the token adds to a text: perhaps part of a character; nothing where it is special or unknown."""
        pieces = self._visible_pieces if skip_special_tokens else self._vocabulary.pieces
        return pieces[token_id] if 0 <= token_id < len(pieces) else b""

    def token_text(self, token_id: int) -> str:
        r"""What to call the token where log probabilities are listed.

        Its text where that is whole characters; `bytes:\xe4\xbd` where it is not; a special token's name;
        `token_id:123` for an id without a token.
        """
        data = self.token_bytes(token_id, skip_special_tokens=False)
        if not data:
            return f"token_id:{token_id}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
