"""Log probabilities as chat and text completions show them."""

from __future__ import annotations

from service.api.choice import Piece
from service.text.tokenizer import Tokenizer

Json = dict[str, object]


def chat_logprobs(tokenizer: Tokenizer, piece: Piece) -> Json:
    """One entry per token, with its bytes: text may be cut within a character, bytes never lie."""

    def entry(token_id: int, logprob: float) -> Json:
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": logprob,
            "bytes": list(tokenizer.token_bytes(token_id, skip_special_tokens=False)),
        }

    content = [
        {
            **entry(token.token_id, token.logprob),
            "top_logprobs": [entry(token_id, logprob) for token_id, logprob in token.top],
        }
        for token in piece.logprobs
        if token is not None
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, piece: Piece) -> Json:
    """Four aligned lists; null where nothing precedes the token. `top_logprobs` always has the token itself too."""
    names = [tokenizer.token_text(token_id) for token_id in piece.token_ids]
    top = [
        token
        and {
            **{tokenizer.token_text(token_id): logprob for token_id, logprob in token.top},
            name: token.logprob,
        }
        for name, token in zip(names, piece.logprobs, strict=True)
    ]
    return {
        "tokens": names,
        "token_logprobs": [token and token.logprob for token in piece.logprobs],
        "top_logprobs": top,
        "text_offset": list(piece.text_offsets),
    }
