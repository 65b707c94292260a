"""What a model's files say about its text side; `Tokenizer` is built from it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Tokenizer as Backend

from service.text.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerParts:
    """`eos_token_ids` are all the ids that end a generation, not only the one in `tokenizer_config.json`."""

    backend: Backend
    bos_token_id: int | None = None
    eos_token_ids: frozenset[int] = frozenset()
    chat_template: ChatTemplate | None = None
