"""Tiny tokenizers of both families, and the texts that are hard for them."""

from __future__ import annotations

from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from service.text.parts import TokenizerParts
from service.text.tokenizer import Tokenizer
from service.text.vocabulary import SPACE_MARK, byte_alphabet

SAMPLES = (
    "",
    " ",
    "Hello, world!",
    "  two spaces, then\n\n\ttabs and lines\r\n  ",
    "It's what they'll've said: DON'T.",
    "naïve café, Straße, Ω≈ç√, ﬁ",
    "Привет, как дела? Добрый день",
    "你好，世界。今天天气很好",  # noqa: RUF001 - the full-width comma is meant
    "日本語のテキストと한국어 텍스트",
    "مرحبا بالعالم و שלום עולם",
    "नमस्ते दुनिया",
    "emoji: 😀 👩‍👩‍👧‍👦 🇩🇪 ☃️",
    "1 22 333 4444 3.14159 1,000,000 ²³ ½ Ⅷ",
    "def f(x: int) -> int:\n    return x ** 2  # square\n",
    '{"key": [1, 2.5, null], "s": "a\\nb"}',
    "zero\u200bwidth, nul\x00, bell\x07, nbsp\u00a0, combining e\u0301",
)

texts = st.text(st.characters(codec="utf-8"))


def byte_level_tokenizer() -> Tokenizer:
    """All 256 bytes, some merges (one ends inside a character), an end token and a visible added token."""
    alphabet = list(byte_alphabet())
    # The character 你 is the bytes e4 bd a0; the merged token holds the first two.
    byte_name = {byte: name for name, byte in byte_alphabet().items()}
    merges = [("h", "e"), ("Ġ", "he"), (byte_name[0xE4], byte_name[0xBD])]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    backend = Backend(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    backend.add_tokens([AddedToken("<toolé>", special=False, normalized=False)])
    return Tokenizer(TokenizerParts(backend=backend, eos_token_ids=frozenset({len(tokens)})))


def byte_fallback_tokenizer() -> Tokenizer:
    """SentencePiece's form: spaces are marked, whatever is not in the vocabulary falls back to bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [SPACE_MARK, "h", "e", "é", "你", f"{SPACE_MARK}h", "he", f"{SPACE_MARK}he"]
    merges = [(SPACE_MARK, "h"), ("h", "e"), (SPACE_MARK + "h", "e")]
    backend = Backend(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=merges,
            unk_token=words[0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    mark_spaces = normalizers.Replace(" ", SPACE_MARK)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), mark_spaces])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    return Tokenizer(TokenizerParts(backend=backend, bos_token_id=1, eos_token_ids=frozenset({2})))


def token_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids at all, also outside the vocabulary; bytes are far more frequent than words in a tiny vocabulary."""
    return st.lists(st.integers(min_value=0, max_value=tokenizer.vocab_size + 2))
