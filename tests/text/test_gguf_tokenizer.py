"""Tokenizers rebuilt from GGUF metadata give the ids of the tokenizers they came from."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import sentencepiece
from gguf import TokenType
from hypothesis import given
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from service.errors import ModelError, UnsupportedModelError
from service.text.tokenizer import Tokenizer, load_tokenizer
from service.text.vocabulary import byte_alphabet
from tests.text.gguf_files import write_gguf
from tests.text.strategies import SAMPLES, texts

WITHOUT_NUMERALS = [text for text in SAMPLES if not any(character.isnumeric() for character in text)]
CORPUS = " ".join(SAMPLES) * 3 + " the quick brown fox jumps over the lazy dog " * 20


@pytest.fixture(scope="module")
def reference(default_model_path: Path) -> PreTrainedTokenizerFast:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoTokenizer.from_pretrained(default_model_path.parent, gguf_file=default_model_path.name)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture(scope="module")
def default_tokenizer(default_model_path: Path) -> Tokenizer:
    return load_tokenizer(default_model_path)


class TestDefaultModel:
    """SmolLM2's file against transformers' reading of the same file."""

    @pytest.mark.parametrize("text", [*WITHOUT_NUMERALS, "<|im_start|>user\nhi<|im_end|>\n", "a<|endoftext|>b"])
    def test_encodes_and_decodes_as_transformers(
        self, default_tokenizer: Tokenizer, reference: PreTrainedTokenizerFast, text: str
    ) -> None:
        """Ids are the same in any script, and decode to the same text with and without special tokens."""
        ids = default_tokenizer.encode(text)

        assert ids == reference.encode(text)
        for skip in (True, False):
            assert default_tokenizer.decode(ids, skip_special_tokens=skip) == reference.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )

    def test_splits_digits_before_words_as_the_model_was_trained(self, default_tokenizer: Tokenizer) -> None:
        """`smollm` cuts numerals off first: two spaces before one are one token. transformers ignores that for GGUF."""
        ids = default_tokenizer.encode("a  12 ½ 3²")

        assert [default_tokenizer.token_text(token_id) for token_id in ids] == [
            *("a", "  ", "1", "2", " ", "½", " ", "3", "²"),
        ]

    def test_knows_its_special_tokens_and_template(
        self, default_tokenizer: Tokenizer, reference: PreTrainedTokenizerFast
    ) -> None:
        """Begin and end ids, vocabulary size and the rendered chat are those of the file."""
        chat = [{"role": "user", "content": "Hi"}]

        assert default_tokenizer.vocab_size == len(reference)
        assert default_tokenizer.bos_token_id == reference.bos_token_id
        assert default_tokenizer.eos_token_ids == {reference.eos_token_id}
        assert default_tokenizer.chat_template is not None
        assert default_tokenizer.chat_template.render(chat) == reference.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )


@pytest.fixture(scope="module")
def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    """A tiny BPE model with byte fallback, trained on the samples by the original library."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _write_sentencepiece(path: Path, model: sentencepiece.SentencePieceProcessor, **keys: object) -> Path:
    ids = range(model.vocab_size())
    kinds = [
        TokenType.UNKNOWN
        if model.is_unknown(index)
        else TokenType.CONTROL
        if model.is_control(index)
        else TokenType.BYTE
        if model.is_byte(index)
        else TokenType.NORMAL
        for index in ids
    ]
    special = {"bos_token_id": model.bos_id(), "eos_token_id": model.eos_id(), "unknown_token_id": model.unk_id()}
    scores = {"scores": [float(model.get_score(index)) for index in ids]}
    return write_gguf(path, "llama", [model.id_to_piece(index) for index in ids], kinds, {**special, **scores, **keys})


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(
    sentencepiece_model: sentencepiece.SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    path = tmp_path_factory.mktemp("llama") / "tiny.gguf"
    return load_tokenizer(_write_sentencepiece(path, sentencepiece_model))


class TestSentencePiece:
    """`llama` files against the sentencepiece library on the same vocabulary."""

    @pytest.mark.parametrize("text", SAMPLES)
    def test_encodes_and_decodes_as_sentencepiece(
        self, sentencepiece_tokenizer: Tokenizer, sentencepiece_model: sentencepiece.SentencePieceProcessor, text: str
    ) -> None:
        """Merges derived from scores give the original ids: words, unknown scripts as bytes, spaces kept."""
        expected = sentencepiece_model.encode(text)

        assert sentencepiece_tokenizer.encode(text) == [sentencepiece_model.bos_id(), *expected]
        assert sentencepiece_tokenizer.decode(expected) == sentencepiece_model.decode(expected)

    @given(text=texts)
    def test_any_text_comes_back(self, sentencepiece_tokenizer: Tokenizer, text: str) -> None:
        """Byte fallback loses nothing."""
        assert sentencepiece_tokenizer.decode(sentencepiece_tokenizer.encode(text)) == text.replace("\u2581", " ")

    def test_flags_are_honoured(
        self, sentencepiece_model: sentencepiece.SentencePieceProcessor, tmp_path: Path
    ) -> None:
        """The file decides on begin token, end token and the added space."""
        flags = {"add_bos_token": False, "add_eos_token": True, "add_space_prefix": False}
        tokenizer = load_tokenizer(_write_sentencepiece(tmp_path / "flags.gguf", sentencepiece_model, **flags))

        ids = tokenizer.encode("the fox")

        assert [tokenizer.token_text(token_id) for token_id in (ids[0], ids[-1])] == ["the", "</s>"]
        assert tokenizer.decode(tokenizer.encode(" the fox")) == " the fox"


ALPHABET = list(byte_alphabet())
MERGES = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "Ġ Ġ"]
BYTE_TOKENS = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES), "zz", "<|eot_id|>", "<tool>"]
BYTE_KINDS = [*[TokenType.NORMAL] * (len(BYTE_TOKENS) - 2), TokenType.CONTROL, TokenType.USER_DEFINED]


def _byte_level(path: Path, **keys: object) -> Tokenizer:
    return load_tokenizer(write_gguf(path, "gpt2", BYTE_TOKENS, BYTE_KINDS, {"merges": MERGES, **keys}))


class TestByteLevel:
    """`gpt2` files: word splitting by name."""

    @pytest.mark.parametrize(
        ("pre", "words"),
        [
            ("gpt-2", ["the", " the", "  ", " 1234", "'s", "\n\n"]),
            ("smollm", ["the", " the", "   ", "1", "2", "3", "4", "'s", "\n\n"]),
            ("llama-bpe", ["the", " the", "  ", " ", "123", "4", "'s", "\n\n"]),
            ("qwen2", ["the", " the", "  ", " ", "1", "2", "3", "4", "'s", "\n\n"]),
        ],
    )
    def test_cuts_words_as_named(self, tmp_path: Path, pre: str, words: list[str]) -> None:
        """Each family's treatment of digits, contractions and spaces."""
        tokenizer = _byte_level(tmp_path / "tiny.gguf", pre=pre)

        cut = tokenizer._backend.pre_tokenizer.pre_tokenize_str("the the   1234's\n\n")

        names = byte_alphabet()
        assert [bytes(names[character] for character in word).decode() for word, _ in cut] == words

    def test_qwen2_cuts_as_its_own_tokenizer_does(self, tmp_path: Path) -> None:
        """Our expression for qwen2 is the one that transformers ships with the model."""
        from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX  # noqa: PLC0415 - slow import

        theirs = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
        ours = _byte_level(tmp_path / "tiny.gguf", pre="qwen2")._backend.pre_tokenizer

        for text in (*SAMPLES, CORPUS):
            assert [span for _, span in ours.pre_tokenize_str(text)] == [
                span for _, span in theirs.pre_tokenize_str(text)
            ]

    @pytest.mark.parametrize(("pre", "names"), [("llama-bpe", ["zz"]), ("qwen2", ["z", "z"])])
    def test_llama3_takes_a_word_that_is_a_token_whole(self, tmp_path: Path, pre: str, names: list[str]) -> None:
        """A token that no merge leads to is still found by Llama 3, and only by it."""
        tokenizer = _byte_level(tmp_path / "tiny.gguf", pre=pre)

        assert [tokenizer.token_text(token_id) for token_id in tokenizer.encode("zz")] == names

    @pytest.mark.parametrize(("pre", "is_composed"), [("qwen2", True), ("gpt-2", False)])
    def test_qwen2_composes_characters(self, tmp_path: Path, pre: str, is_composed: bool) -> None:
        """Qwen normalises to NFC: an accent after its letter is the same text as the accented letter."""
        tokenizer = _byte_level(tmp_path / "tiny.gguf", pre=pre)

        assert (tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9")) is is_composed

    def test_control_tokens_end_a_turn_and_user_tokens_are_shown(self, tmp_path: Path) -> None:
        """A control token known to end turns ends generation though the file does not name it; a user token is text."""
        tokenizer = _byte_level(tmp_path / "tiny.gguf", pre="llama-bpe")
        eot, tool = BYTE_TOKENS.index("<|eot_id|>"), BYTE_TOKENS.index("<tool>")

        assert tokenizer.encode("<tool><|eot_id|>") == [tool, eot]
        assert tokenizer.eos_token_ids == {eot}
        assert tokenizer.decode([tool, eot]) == "<tool>"

    def test_llama3_begins_with_the_begin_token_unless_told_otherwise(self, tmp_path: Path) -> None:
        """Llama 3 files without the flag get a begin token; SmolLM2's have none."""
        begins = {
            pre: _byte_level(tmp_path / f"{pre}.gguf", pre=pre, bos_token_id=3).encode("the")[0] == 3
            for pre in ("llama-bpe", "smollm")
        }

        assert begins == {"llama-bpe": True, "smollm": False}


@pytest.mark.parametrize(
    ("model", "keys", "error", "message"),
    [
        ("gpt2", {"merges": [], "pre": "tekken"}, UnsupportedModelError, "'tekken' is not supported"),
        ("bert", {}, UnsupportedModelError, "'bert' is not supported"),
        ("gpt2", {}, ModelError, r"no tokenizer\.ggml\.merges"),
        ("gpt2", {"merges": ["a"]}, ModelError, "is inconsistent"),
        ("gpt2", {"merges": ["a nowhere"]}, ModelError, "is inconsistent"),
        ("gpt2", {"merges": "a b"}, ModelError, "must be of type list"),
        ("gpt2", {"merges": ["a b"], "bos_token_id": 999, "add_bos_token": True}, ModelError, "is inconsistent"),
        ("llama", {}, ModelError, r"no tokenizer\.ggml\.scores"),
        ("llama", {"scores": [0.0]}, ModelError, "is inconsistent"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, model: str, keys: dict[str, object], error: type[ModelError], message: str
) -> None:
    """An unknown kind, a missing key and a contradiction each give one sentence."""
    path = write_gguf(tmp_path / "bad.gguf", model, ["a", "b", "ab"], [TokenType.NORMAL] * 3, keys)

    with pytest.raises(error, match=message):
        load_tokenizer(path)
