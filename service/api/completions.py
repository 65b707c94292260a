"""`POST /v1/completions`: its fields, and its prompts in the four forms that they may have."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag

from service.api.body import parse_body
from service.api.budget import completion_budget
from service.api.fields import Int, Unsupported
from service.api.generation import Job
from service.api.render import CompletionRenderer, Head
from service.api.state import ApiState
from service.api.structured import StructuredFields
from service.errors import InvalidRequestError
from service.types import MAX_CHOICES, GenerateRequest, SamplingParams

DEFAULT_MAX_TOKENS = 16


def kind_of_prompt(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "<texts>" if isinstance(first, str) else "<prompts>" if isinstance(first, list) else "<tokens>"


TokenIds = Annotated[list[Int], Field(min_length=1, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<tokens>")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True), Tag("<prompts>")],
    Discriminator(
        kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="expected a string, token ids or an array of either",
    ),
]


class CompletionRequest(StructuredFields):
    """A text completion."""

    unsupported: ClassVar[Unsupported] = {"best_of": (1,), "suffix": ("",)}

    prompt: Prompt
    echo: bool | None = Field(None, description="Begin each choice with its prompt.")
    logprobs: Int | None = Field(
        None, description="Log probabilities with so many alternatives (0-20), with echo of the prompt too."
    )


def prepare(state: ApiState, body: bytes, arrival_at: float) -> Job:
    """Parse and tokenise. Slow for long prompts: run it in a thread. Raises RequestError."""
    fields = parse_body(CompletionRequest, body)
    adapter = state.adapter_of(fields.model)
    n = 1 if fields.n is None else fields.n
    grammar = fields.output_grammar(state.tokenizer)
    answer_id = f"cmpl-{uuid.uuid4().hex}"
    requests = tuple(
        GenerateRequest(
            request_id=f"{answer_id}-{index}",
            prompt_token_ids=tuple(prompt),
            sampling=_sampling(state, fields, len(prompt)),
            n=n,
            grammar=grammar,
            adapter=adapter,
            arrival_at=arrival_at,
            claim=fields.claim(arrival_at),
        )
        for index, prompt in enumerate(_token_lists(state, fields, n))
    )
    head = Head(
        answer_id=answer_id,
        created=int(state.wall_clock()),
        model=fields.model or state.model_id,
        version=state.version,
    )
    with_logprobs = fields.logprobs is not None
    return Job(
        requests=requests,
        rules=fields.text_rules(continues_text=not fields.echo or grammar is not None),
        renderer=CompletionRenderer(
            head, state.tokenizer, with_logprobs=with_logprobs, stream_usage=fields.stream_usage
        ),
        echo=bool(fields.echo),
        stream=bool(fields.stream),
    )


def _token_lists(state: ApiState, fields: CompletionRequest, n: int) -> Iterator[list[int]]:
    """The prompts one by one, text as token ids; no more of them than may be answered."""
    if isinstance(fields.prompt, str):
        prompts: list[str | list[int]] = [fields.prompt]
    elif isinstance(fields.prompt[0], int):
        prompts = [fields.prompt]
    else:
        prompts = [*fields.prompt]
    if len(prompts) > 1 and len(prompts) * n > MAX_CHOICES:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n = {n} are more than {MAX_CHOICES} choices: send several requests.",
            param="prompt",
        )
    add_special_tokens = fields.add_special_tokens is not False
    for prompt in prompts:
        if isinstance(prompt, str):
            yield state.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        else:
            yield prompt


def _sampling(state: ApiState, fields: CompletionRequest, num_prompt_tokens: int) -> SamplingParams:
    max_tokens = completion_budget(
        num_prompt_tokens,
        requested=fields.max_tokens,
        default=DEFAULT_MAX_TOKENS,
        max_model_len=state.backend.max_model_len,
        param="prompt",
    )
    scores_only = 0 if max_tokens == 0 else None  # an echo that generates nothing: prompt_logprobs is what permits it
    prompt_logprobs = (scores_only if fields.logprobs is None else fields.logprobs) if fields.echo else None
    return fields.sampling(
        {"prompt_logprobs": "logprobs"},
        max_tokens=max_tokens,
        logprobs=fields.logprobs,
        prompt_logprobs=prompt_logprobs,
    )
