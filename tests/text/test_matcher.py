"""The state of one output under its grammar."""

from __future__ import annotations

import pytest

from service.text.grammar import json_schema
from service.text.tokenizer import Tokenizer
from tests.text.strategies import byte_fallback_tokenizer, byte_level_tokenizer
from tests.text.walk import walk


@pytest.mark.parametrize(
    "tokenizer", [byte_level_tokenizer(), byte_fallback_tokenizer()], ids=["byte-level", "byte-fallback"]
)
def test_an_output_may_be_taken_back(tokenizer: Tokenizer) -> None:
    """A step that failed is tried again from where it began: the masks are those of before."""
    source = json_schema({"type": "string", "minLength": 6, "maxLength": 9})
    output = walk(tokenizer, source, seed=4)[:-1]
    assert len(output) > 5
    matcher = tokenizer.grammars.compile(source).matcher()
    masks = [matcher.mask(output[:end]) for end in range(len(output) + 1)]

    for end in (len(output) - 1, len(output), 2, 0, len(output) // 2):
        assert matcher.mask(output[:end]) == masks[end]
