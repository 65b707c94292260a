"""Streamed text is the whole text, whatever the tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text.detokenizer import Detokenizer
from service.text.tokenizer import Tokenizer
from tests.text.strategies import SAMPLES, byte_fallback_tokenizer, byte_level_tokenizer, texts, token_ids

BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()
FAMILIES = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte-level", "byte-fallback"])
MAX_UTF8_BYTES = 4


def _pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@FAMILIES
@given(data=st.data())
def test_pieces_concatenate_to_the_bytes_decoded_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """For any token ids, what is streamed and what `decode` gives is the text of all their bytes together."""
    ids = data.draw(token_ids(tokenizer))

    whole = b"".join(map(tokenizer.token_bytes, ids))
    if tokenizer.strips_leading_space:
        whole = whole.removeprefix(b" ")

    assert "".join(_pieces(tokenizer, ids)) == tokenizer.decode(ids) == whole.decode(errors="replace")


@FAMILIES
@given(text=texts)
def test_well_formed_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    """Encoding and streaming out a text gives the text, with no replacement character of our own making."""
    ids = tokenizer.encode(text, add_special_tokens=False)

    pieces = _pieces(tokenizer, ids)

    assert "".join(pieces) == text
    assert sum(piece.count("\ufffd") for piece in pieces) == text.count("\ufffd")


@FAMILIES
@pytest.mark.parametrize("text", SAMPLES)
def test_decode_is_that_of_the_library(tokenizer: Tokenizer, text: str) -> None:
    """On text that was encoded, our decoding and the tokenizers library's own agree."""
    ids = [*tokenizer.encode(text, add_special_tokens=False), *tokenizer.eos_token_ids]

    assert tokenizer.decode(ids) == tokenizer._backend.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == tokenizer._backend.decode(ids, skip_special_tokens=False)


@FAMILIES
@given(data=st.data())
def test_never_holds_back_more_than_one_incomplete_character(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """However broken the bytes are, all but the last three of them are shown at once."""
    ids = data.draw(token_ids(tokenizer))
    detokenizer = Detokenizer(tokenizer, continues_text=True)
    shown = ""
    for index, token_id in enumerate(ids, start=1):
        shown += detokenizer.push(token_id)
        so_far = b"".join(map(tokenizer.token_bytes, ids[:index]))
        certain = so_far[: max(0, len(so_far) - (MAX_UTF8_BYTES - 1))].decode(errors="replace").rstrip("\ufffd")

        assert shown.startswith(certain)


def test_a_split_character_waits_for_its_last_byte() -> None:
    """The bytes of one emoji in four tokens give nothing, nothing, nothing, emoji."""
    ids = BYTE_LEVEL.encode("😀")

    assert _pieces(BYTE_LEVEL, ids) == ["", "", "", "😀", ""]


def test_an_incomplete_tail_is_replaced_at_the_end_as_in_the_whole_text() -> None:
    """A generation that stops inside a character ends with one U+FFFD, not with a lost or a broken byte."""
    ids = BYTE_LEVEL.encode("a你")[:-1]

    assert _pieces(BYTE_LEVEL, ids) == ["a", "", "\ufffd"]


def test_special_tokens_are_skipped_and_do_not_break_a_character() -> None:
    """An end token adds nothing; a visible added token is shown as it is."""
    end, tool = BYTE_LEVEL.encode("<|end|><toolé>")

    assert _pieces(BYTE_LEVEL, [end, tool, end]) == ["", "<toolé>", "", ""]


@pytest.mark.parametrize(("continues_text", "expected"), [(False, "he he"), (True, " he he")])
def test_the_leading_space_is_stripped_only_where_a_text_begins(continues_text: bool, expected: str) -> None:
    """SentencePiece's added space goes with a text's first word; after a prompt it is a word boundary and stays."""
    begin, *ids = [1, *BYTE_FALLBACK.encode("he he", add_special_tokens=False)]
    detokenizer = Detokenizer(BYTE_FALLBACK, continues_text=continues_text)

    assert "".join(map(detokenizer.push, [begin, *ids])) + detokenizer.finish() == expected
