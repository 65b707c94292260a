"""The tokenizer of a GGUF file, rebuilt from its metadata for the `tokenizers` library.

Two kinds are known (`tokenizer.ggml.model`): "gpt2" is byte-level BPE with its merges in the file and its word
splitting named by `tokenizer.ggml.pre`; "llama" is SentencePiece BPE, which merges the pair whose result has the best
score. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from service.errors import ModelError, UnsupportedModelError
from service.gguf_header import Metadata, map_gguf, read_header
from service.text.chat_template import ChatTemplate
from service.text.parts import TokenizerParts
from service.text.vocabulary import SPACE_MARK

T = TypeVar("T")

_ARRAYS = frozenset(f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "merges", "scores"))
# Tokens that end a turn. Files made for plain text completion name only the end of a text as `eos_token_id`.
_END_OF_TURN = frozenset({"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"})

_WORDS_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS_QWEN2 = _WORDS_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class _TokenKind(IntEnum):
    """As the format numbers them; the `gguf` package, which names them too, is slow to import."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4


@dataclass(frozen=True, slots=True)
class _WordSplitting:
    """How one family of byte-level tokenizers cuts a text before merging. `words` None is GPT-2's own rule.

    `single_digits` cuts every digit off first, `composes` normalises to NFC, `whole_words` takes a word that is a token
    as it is, without merging. `adds_bos` is what holds when the file does not say.
    """

    words: str | None = None
    single_digits: bool = False
    composes: bool = False
    whole_words: bool = False
    adds_bos: bool = False


_GPT2 = _WordSplitting()
_LLAMA3 = _WordSplitting(words=_WORDS_LLAMA3, whole_words=True, adds_bos=True)
_QWEN2 = _WordSplitting(words=_WORDS_QWEN2, composes=True)
_WORD_SPLITTINGS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _WordSplitting(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def read_gguf_tokenizer(path: Path) -> TokenizerParts:
    """Raises ModelError (no such file, no sound tokenizer in it), or UnsupportedModelError naming what is missing."""
    metadata = _TokenizerMetadata(read_header(map_gguf(path), path, arrays=_ARRAYS).metadata)
    try:
        return _read_parts(metadata)
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"The tokenizer in {path} is inconsistent: {error}.") from error


class _TokenizerMetadata:
    """Typed access to the `tokenizer.ggml.*` keys."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self.required("tokens", list)
        self.kinds: list[int] = self.optional("token_type", list) or [_TokenKind.NORMAL] * len(self.tokens)
        self.chat_template = metadata.get("tokenizer.chat_template")

    def optional(self, key: str, kind: type[T]) -> T | None:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is not None and not isinstance(value, kind):
            raise ModelError(f"tokenizer.ggml.{key} must be of type {kind.__name__}, but is {type(value).__name__}.")
        return value

    def required(self, key: str, kind: type[T]) -> T:
        value = self.optional(key, kind)
        if value is None:
            raise ModelError(f"The file has no tokenizer.ggml.{key}: it holds no complete tokenizer.")
        return value

    def token(self, key: str) -> str | None:
        """The token that `<key>_token_id` points at."""
        token_id = self.optional(f"{key}_token_id", int)
        return None if token_id is None else self.tokens[token_id]

    def of_kind(self, *kinds: _TokenKind) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


def _read_parts(metadata: _TokenizerMetadata) -> TokenizerParts:
    model = metadata.required("model", str)
    if model == "gpt2":
        backend, adds_bos = _byte_level(metadata)
    elif model == "llama":
        backend, adds_bos = _sentencepiece(metadata), True
    else:
        raise UnsupportedModelError(f"The tokenizer model {model!r} is not supported; gpt2 and llama are.")
    control = metadata.of_kind(_TokenKind.CONTROL, _TokenKind.UNKNOWN)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    own = metadata.of_kind(_TokenKind.USER_DEFINED)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
    backend.post_processor = _post_processor(metadata, adds_bos)
    return TokenizerParts(
        backend=backend,
        bos_token_id=metadata.optional("bos_token_id", int),
        eos_token_ids=frozenset(_eos_token_ids(metadata)),
        chat_template=_chat_template(metadata),
    )


def _byte_level(metadata: _TokenizerMetadata) -> tuple[Backend, bool]:
    """The tokenizer, and whether it puts a begin token first when the file does not say."""
    name = metadata.optional("pre", str) or "default"
    if name not in _WORD_SPLITTINGS:
        supported = ", ".join(_WORD_SPLITTINGS)
        raise UnsupportedModelError(f"The pre-tokenizer {name!r} is not supported; these are: {supported}.")
    splitting = _WORD_SPLITTINGS[name]
    merges = [tuple(merge.split(" ")) for merge in metadata.required("merges", list)]
    vocabulary = {token: token_id for token_id, token in enumerate(metadata.tokens)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words))
    if splitting.composes:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(_word_steps(splitting)))
    backend.decoder = decoders.ByteLevel()
    return backend, splitting.adds_bos


def _word_steps(splitting: _WordSplitting) -> Iterator[pre_tokenizers.PreTokenizer]:
    if splitting.single_digits:
        yield pre_tokenizers.Digits(individual_digits=True)
    if splitting.words is not None:
        yield pre_tokenizers.Split(Regex(splitting.words), behavior="isolated")
    yield pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.words is None)


def _sentencepiece(metadata: _TokenizerMetadata) -> Backend:
    adds_space = metadata.optional("add_space_prefix", bool) is not False
    vocabulary = {token: token_id for token_id, token in enumerate(metadata.tokens)}
    backend = Backend(
        models.BPE(
            vocab=vocabulary,
            merges=_merges_by_score(metadata),
            unk_token=metadata.token("unknown"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    mark_spaces = normalizers.Replace(" ", SPACE_MARK)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE_MARK), mark_spaces]) if adds_space else mark_spaces
    )
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if adds_space else steps)
    return backend


def _merges_by_score(metadata: _TokenizerMetadata) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, best score of the result first: SentencePiece's rule as a merge list."""
    scores = dict(zip(metadata.tokens, metadata.required("scores", list), strict=True))
    pieces = dict.fromkeys(metadata.of_kind(_TokenKind.NORMAL, _TokenKind.USER_DEFINED))
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _post_processor(metadata: _TokenizerMetadata, adds_bos: bool) -> processors.TemplateProcessing:
    """Puts the begin and end token around a text; where the file does not say, `adds_bos` holds and no end token."""
    asked = metadata.optional("add_bos_token", bool)
    added = {
        "bos": metadata.token("bos") if (adds_bos if asked is None else asked) else None,
        "eos": metadata.token("eos") if metadata.optional("add_eos_token", bool) else None,
    }
    return processors.TemplateProcessing(
        single=[name for name in ("bos", "$A", "eos") if added.get(name, name) is not None],
        special_tokens=[
            {"id": name, "ids": [metadata.required(f"{name}_token_id", int)], "tokens": [token]}
            for name, token in added.items()
            if token is not None
        ],
    )


def _eos_token_ids(metadata: _TokenizerMetadata) -> Iterator[int]:
    for key in ("eos_token_id", "eot_token_id", "eom_token_id"):
        token_id = metadata.optional(key, int)
        if token_id is not None:
            yield token_id
    for token_id, (token, kind) in enumerate(zip(metadata.tokens, metadata.kinds, strict=True)):
        if kind == _TokenKind.CONTROL and token in _END_OF_TURN:
            yield token_id


def _chat_template(metadata: _TokenizerMetadata) -> ChatTemplate | None:
    if not isinstance(metadata.chat_template, str):
        return None
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special_tokens = {name: token for name, key in names.items() if (token := metadata.token(key)) is not None}
    return ChatTemplate(metadata.chat_template, special_tokens=special_tokens)
