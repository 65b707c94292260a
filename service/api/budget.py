"""How many tokens a completion may have, and how much an answer may hold."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import ContextLengthError, InvalidRequestError
from service.types import GenerateRequest

MAX_ALTERNATIVES = 1 << 18


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


def check_alternatives(requests: Sequence[GenerateRequest]) -> None:
    """Raise InvalidRequestError where an answer in one piece could have more alternatives to its tokens than fit into
    memory beside those of others: a few hundred bytes each."""
    num_alternatives = sum(
        request.n * request.sampling.max_tokens * (request.sampling.logprobs or 0)
        + len(request.prompt_token_ids) * (request.sampling.prompt_logprobs or 0)
        for request in requests
    )
    if num_alternatives > MAX_ALTERNATIVES:
        raise InvalidRequestError(
            f"The answer could have {num_alternatives} alternatives to its tokens, and {MAX_ALTERNATIVES} are the most:"
            " ask for fewer logprobs, choices or tokens, or for a stream.",
            param="logprobs",
        )
