"""Tokenizers of Hugging Face directories, and what every tokenizer promises."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from service.errors import InvalidRequestError, ModelError, ModelNotFoundError, UnsupportedModelError
from service.text.parts import TokenizerParts
from service.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.strategies import byte_fallback_tokenizer, byte_level_tokenizer, texts

BYTE_LEVEL = byte_level_tokenizer()
END = BYTE_LEVEL.encode("<|end|>")[0]

WriteModel = Callable[..., Path]


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Write a directory with the byte-level tokenizer and the given other files."""

    def write(**files: object) -> Path:
        BYTE_LEVEL._backend.save(str(tmp_path / "tokenizer.json"))
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, set()),
        ({"tokenizer_config": {"eos_token": "<|end|>"}}, {END}),
        ({"tokenizer_config": {"eos_token": {"content": "<|end|>", "special": True}}}, {END}),
        ({"tokenizer_config": {"eos_token": None}, "config": {"eos_token_id": 5}}, {5}),
        ({"generation_config": {"eos_token_id": [5, 6]}, "config": {"eos_token_id": 7}}, {5, 6, 7}),
        ({"generation_config": {"eos_token_id": None}}, set()),
    ],
    ids=["none", "text", "object", "config", "list", "null"],
)
def test_every_end_token_that_a_file_names_counts(
    write_model: WriteModel, files: dict[str, object], expected: set[int]
) -> None:
    """End ids come from tokenizer, generation and model configuration, as a number or a list."""
    assert load_tokenizer(write_model(**files)).eos_token_ids == expected


def test_the_begin_token_is_found_by_its_text(write_model: WriteModel) -> None:
    """`bos_token` is a text; its id comes from the vocabulary."""
    assert load_tokenizer(write_model(tokenizer_config={"bos_token": "h"})).bos_token_id == BYTE_LEVEL.encode("h")[0]
    assert load_tokenizer(write_model(tokenizer_config={"bos_token": None})).bos_token_id is None


@pytest.mark.parametrize(
    "template",
    ["{{ eos_token }}!", [{"name": "tool_use", "template": "?"}, {"name": "default", "template": "{{ eos_token }}!"}]],
    ids=["text", "list"],
)
def test_the_chat_template_of_the_configuration(write_model: WriteModel, template: object) -> None:
    """It is a text, or a list of which the default one counts; special tokens are its variables."""
    tokenizer = load_tokenizer(write_model(tokenizer_config={"chat_template": template, "eos_token": "<|end|>"}))

    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render([]) == "<|end|>!"


def test_a_chat_template_file_comes_first(write_model: WriteModel) -> None:
    """`chat_template.jinja` replaces what the configuration says."""
    path = write_model(tokenizer_config={"chat_template": "old"})
    (path / "chat_template.jinja").write_text("new é", encoding="utf-8")

    tokenizer = load_tokenizer(path)

    assert tokenizer.chat_template is not None
    assert tokenizer.chat_template.render([]) == "new é"


def test_a_model_without_a_chat_template_has_none(write_model: WriteModel) -> None:
    """A base model has no chat template, and says so."""
    assert load_tokenizer(write_model()).chat_template is None


def test_a_prompt_is_never_cut_or_padded(write_model: WriteModel) -> None:
    """Truncation and padding left in the file by a training run are switched off."""
    path = write_model()
    backend = Backend.from_file(str(path / "tokenizer.json"))
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    backend.save(str(path / "tokenizer.json"))

    assert load_tokenizer(path).encode("abcd") == BYTE_LEVEL.encode("abcd")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("tokenizer.json", None, ModelNotFoundError),
        ("tokenizer.json", "{}", ModelError),
        ("tokenizer_config.json", "{", ModelError),
        ("config.json", "[]", ModelError),
        pytest.param("config.json", "[" * 100_000, ModelError, id="nested too deep"),
        ("chat_template.jinja", b"\xff", ModelError),
    ],
)
def test_a_missing_or_broken_file_is_named(
    write_model: WriteModel, name: str, content: str | bytes | None, error: type[ModelError]
) -> None:
    """The sentence names the file at fault."""
    file = write_model() / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(error, match=name):
        load_tokenizer(file.parent)


def test_an_unknown_decoder_is_refused() -> None:
    """A tokenizer whose tokens we cannot turn into bytes is refused at start, naming the decoder."""
    backend = Backend(models.BPE())
    backend.decoder = decoders.BPEDecoder()

    with pytest.raises(UnsupportedModelError, match="BPEDecoder"):
        Tokenizer(TokenizerParts(backend=backend))


def test_word_pieces_read_as_words() -> None:
    """An encoder's tokens: a space before each word, none before what goes on with one."""
    backend = Backend(models.WordPiece({"the": 0, "cat": 1, "##s": 2, "[UNK]": 3}))
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(TokenizerParts(backend=backend))

    assert tokenizer.decode([0, 1, 2]) == "the cats" == backend.decode([0, 1, 2])
    assert [tokenizer.token_bytes(token_id) for token_id in (0, 2)] == [b" the", b"s"]


@given(text=texts)
def test_token_bytes_add_up_to_the_text(text: str) -> None:
    """The bytes listed with log probabilities concatenate to exactly the text shown."""
    for tokenizer in (BYTE_LEVEL, byte_fallback_tokenizer()):
        ids = [*tokenizer.encode(text, add_special_tokens=False), *tokenizer.eos_token_ids]
        data = b"".join(map(tokenizer.token_bytes, ids))

        assert (data.removeprefix(b" ") if tokenizer.strips_leading_space else data).decode() == text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("he he", ["he", " he"]),
        ("你", [r"bytes:\xe4\xbd", r"bytes:\xa0"]),
        ("<|end|>", ["<|end|>"]),
        ("<toolé>", ["<toolé>"]),
    ],
)
def test_token_text_names_every_token(text: str, names: list[str]) -> None:
    """Whole characters are shown, part of one is spelled out in bytes, special tokens have their name."""
    assert [BYTE_LEVEL.token_text(token_id) for token_id in BYTE_LEVEL.encode(text)] == names


@pytest.mark.parametrize("token_id", [-1, BYTE_LEVEL.vocab_size, 10**9])
def test_ids_outside_the_vocabulary_add_nothing(token_id: int) -> None:
    """A model's padding rows can be sampled: they have a name and no text."""
    assert BYTE_LEVEL.token_bytes(token_id) == b""
    assert BYTE_LEVEL.token_text(token_id) == f"token_id:{token_id}"
    assert BYTE_LEVEL.decode([token_id]) == ""


def test_end_tokens_are_special_even_where_the_vocabulary_does_not_say_so() -> None:
    """A token that ends a generation is never shown."""
    newline = BYTE_LEVEL.encode("\n")[0]
    tokenizer = Tokenizer(TokenizerParts(backend=BYTE_LEVEL._backend, eos_token_ids=frozenset({newline})))

    assert tokenizer.token_bytes(newline) == b""
    assert tokenizer.token_bytes(newline, skip_special_tokens=False) == b"\n"
    assert tokenizer.decode(tokenizer.encode("a\n")) == "a"
    assert tokenizer.decode(tokenizer.encode("a\n"), skip_special_tokens=False) == "a\n"


def test_half_a_surrogate_pair_is_the_clients_fault() -> None:
    r"""JSON can smuggle in "\ud800", which no UTF-8 can hold."""
    with pytest.raises(InvalidRequestError, match="surrogate"):
        BYTE_LEVEL.encode("a\ud800")


def test_encoding_leaves_other_threads_running() -> None:
    """While a long text is encoded, another thread gets the interpreter: an event loop beside it does not stall."""
    encoded = threading.Event()

    def encode() -> None:
        BYTE_LEVEL.encode("the end. " * 100_000)
        encoded.set()

    encoder = threading.Thread(target=encode)
    encoder.start()
    turns = 0
    while not encoded.wait(0.001):
        turns += 1
    encoder.join()

    assert turns > 1
