"""How many tokens a completion may have."""

from __future__ import annotations

from service.errors import ContextLengthError


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
