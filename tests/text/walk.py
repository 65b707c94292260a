"""A model that does not care: any token that a grammar allows, at random."""

from __future__ import annotations

import random

from service.text.grammar import Source
from service.text.tokenizer import Tokenizer
from service.types import TokenGrammar

_CLOSING = frozenset('"}])>;')
_PATIENCE = 30
_MAX_TOKENS = 2000


def walk(tokenizer: Tokenizer, source: Source, seed: int) -> list[int]:
    """Token ids up to the end, which is among them."""
    return walk_under(tokenizer, tokenizer.grammars.compile(source), seed)


def walk_under(tokenizer: Tokenizer, grammar: TokenGrammar, seed: int) -> list[int]:
    """The same of a compiled grammar. After a while nothing is begun that can be closed."""
    rng = random.Random(seed)
    matcher = grammar.matcher()
    output: list[int] = []
    while len(output) < _MAX_TOKENS:
        allowed = allowed_in(matcher.mask(output))
        ends = [token_id for token_id in allowed if token_id in tokenizer.eos_token_ids]
        closing = [token_id for token_id in allowed if set(tokenizer.decode([token_id])) & _CLOSING]
        is_late = len(output) > _PATIENCE
        if ends and (is_late or rng.random() < 0.2 or len(allowed) == 1):
            return [*output, ends[0]]
        others = [token_id for token_id in allowed if token_id not in tokenizer.eos_token_ids]
        output.append(rng.choice(closing if closing and (is_late or rng.random() < 0.3) else others))
    raise AssertionError(f"no end after {_MAX_TOKENS} tokens: {tokenizer.decode(output)!r}")


def follows(tokenizer: Tokenizer, source: Source, text: str) -> bool:
    """Whether the tokens of `text`, then the end, are allowed one after the other."""
    matcher = tokenizer.grammars.compile(source).matcher()
    output: list[int] = []
    for token_id in [*tokenizer.encode(text, add_special_tokens=False), min(tokenizer.eos_token_ids)]:
        if token_id not in allowed_in(matcher.mask(output)):
            return False
        output.append(token_id)
    return True


def allowed_in(mask: bytes) -> list[int]:
    return [token_id for token_id in range(len(mask) * 8) if mask[token_id // 8] >> token_id % 8 & 1]
