"""What each token id stands for: its bytes in a text, and whether it is special.

Two families of vocabulary can spell any text, and both spell bytes as characters: byte-level BPE (GPT-2, Llama 3, Qwen,
SmolLM2) maps the 256 bytes one to one to printable characters; SentencePiece (Llama 2, Mistral) writes a space as
U+2581 and, where it falls back to single bytes, a byte as <0xE4>. A third, WordPiece (BERT), only reads: words come
back with a space before each, and the parts that go on with one, ##so, without. Which one holds is read from the
tokenizer's own decoder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tokenizers import Tokenizer as Backend

from service.errors import UnsupportedModelError

SPACE_MARK = "\u2581"
_SENTENCEPIECE: list[dict[str, object]] = [
    {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable Latin-1 stands for itself, the rest is moved up from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = sorted(set(range(256)).difference(printable))
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(moved)}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`pieces[token_id]` is what the token adds to a text, a special token its name; empty for an id without a token.

    `special` ids are marked so by the tokenizer. `strips_leading_space`: see `Detokenizer`.
    """

    pieces: tuple[bytes, ...]
    special: frozenset[int]
    strips_leading_space: bool


def read_vocabulary(backend: Backend) -> Vocabulary:
    """The vocabulary behind `backend`. Raises UnsupportedModelError when its decoder is of no family."""
    to_bytes, strips_leading_space = _interpret_decoder(backend)
    token_ids = backend.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(token_ids.values(), default=-1) + 1)
    for token, token_id in token_ids.items():
        pieces[token_id] = to_bytes(token)
    added = backend.get_added_tokens_decoder()
    for token_id, added_token in added.items():
        pieces[token_id] = added_token.content.encode()
    special = frozenset(token_id for token_id, added_token in added.items() if added_token.special)
    return Vocabulary(tuple(pieces), special, strips_leading_space)


def _interpret_decoder(backend: Backend) -> tuple[Callable[[str], bytes], bool]:
    """How a token spells its bytes, and whether decoding strips the text's first space."""
    steps = _decoder_steps(backend)
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return _byte_level_reader(), False
    if steps[:3] == _SENTENCEPIECE and steps[3:] in ([], [_STRIP_SPACE]):
        return _byte_fallback_bytes, steps[3:] == [_STRIP_SPACE]
    if [step["type"] for step in steps] == ["WordPiece"]:
        return partial(_word_piece_bytes, str(steps[0]["prefix"])), True
    kinds = ", ".join(str(step["type"]) for step in steps) or "none"
    raise UnsupportedModelError(
        f"The tokenizer's decoder ({kinds}) is not supported: it must be ByteLevel, WordPiece, or Replace, "
        "ByteFallback, Fuse and Strip as SentencePiece tokenizers have it."
    )


def _decoder_steps(backend: Backend) -> list[dict[str, object]]:
    if backend.decoder is None:
        return []
    decoder = json.loads(backend.decoder.__getstate__())
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _byte_level_reader() -> Callable[[str], bytes]:
    alphabet = byte_alphabet()
    to_latin1 = str.maketrans({character: chr(byte) for character, byte in alphabet.items()})
    known = frozenset(alphabet)

    def read(token: str) -> bytes:
        # A token outside the alphabet can only have been added as it is.
        return token.translate(to_latin1).encode("latin-1") if known.issuperset(token) else token.encode()

    return read


def _byte_fallback_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE_MARK, " ").encode()


def _word_piece_bytes(prefix: str, token: str) -> bytes:
    return (token.removeprefix(prefix) if token.startswith(prefix) else f" {token}").encode()
