"""Checks on token ids that need to know the model: what the vocabulary has, and what fits the context."""

from __future__ import annotations

from collections.abc import Iterable

from service.errors import ContextLengthError, InvalidRequestError


def check_token_ids(token_ids: Iterable[int], vocab_size: int, param: str) -> None:
    if not all(0 <= token_id < vocab_size for token_id in token_ids):
        raise InvalidRequestError(f"{param} must hold token ids of this model: 0 to {vocab_size - 1}.", param=param)


def completion_budget(
    num_prompt_tokens: int, *, requested: int | None, default: int | None, max_model_len: int, param: str
) -> int:
    """How many tokens a choice may have: what was requested, else the default as far as it fits (None: all that fits).

    `param` is the field that holds the prompt. Raises ContextLengthError when prompt and completion do not fit.
    """
    room = max_model_len - num_prompt_tokens
    budget = max(1, room if default is None else min(default, room)) if requested is None else requested
    if budget > room:
        raise ContextLengthError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_prompt_tokens + budget} tokens ({num_prompt_tokens} in the {param}, {budget} in the completion). "
            f"Please reduce the length of the {param} or completion.",
            param=param,
        )
    return budget
