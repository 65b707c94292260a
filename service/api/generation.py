"""From requests to pieces of text: the part of the path that chat and completions share.

One HTTP request becomes one GenerateRequest per prompt with n sequences: choice = prompt index × n + sequence index.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

from service.api.budget import check_alternatives
from service.api.choice import Choice, Piece, TextRules
from service.api.failure import raise_failure
from service.api.logs import Tally
from service.api.merge import merge
from service.api.render import Renderer
from service.api.state import ApiState
from service.backend import TokenStream
from service.errors import EngineError
from service.types import GenerateRequest, TokenEvent, TokenLogprob


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A parsed and tokenised HTTP request: what to generate (at least one request), what to show of it, and how."""

    requests: tuple[GenerateRequest, ...]
    rules: TextRules
    renderer: Renderer
    echo: bool = False
    stream: bool = False

    def __post_init__(self) -> None:
        if not self.stream:
            check_alternatives(self.requests)

    def tally(self) -> Tally:
        """An empty account of this job."""
        first = self.requests[0]
        return Tally(first.arrival_at, first.n, len(self.requests) * first.n, first.sampling.max_tokens)


async def generate(state: ApiState, job: Job, tally: Tally) -> AsyncGenerator[Piece, None]:
    """The pieces of all choices, the last of each with its finish reason; `tally` is kept up to date.

    All prompts are admitted before the first piece, or none is: raises what `Backend.generate` raises, and later
    EngineError or UnavailableError when a sequence fails. However it ends, nothing goes on in the backend.
    """
    async with AsyncExitStack() as stack:
        sources: list[AsyncGenerator[Piece, None]] = []
        for index, request in enumerate(job.requests):
            first = index * request.n
            choices = [Choice(number, state.tokenizer, job.rules) for number in range(first, first + request.n)]
            stream = state.backend.generate(request)
            stack.push_async_callback(stream.aclose)
            tally.num_prompt_tokens += len(request.prompt_token_ids)
            sources.append(_continue_prompt(state, stream, choices, request if job.echo else None, tally))
        tally.is_admitted = True
        pieces = sources[0] if len(sources) == 1 else merge(sources)
        await stack.enter_async_context(aclosing(pieces))
        async for piece in pieces:
            yield piece


async def _continue_prompt(
    state: ApiState, stream: TokenStream, choices: Sequence[Choice], echo: GenerateRequest | None, tally: Tally
) -> AsyncGenerator[Piece, None]:
    """The pieces of the choices that continue one prompt; with `echo`, each choice begins with that prompt."""
    unechoed = set(choices) if echo else set()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    num_cached_tokens = 0
    num_unfinished = len(choices)
    async for event in stream:
        choice = choices[event.index]
        if choice.finish_reason is not None:
            continue  # a stop string ended it: the engine, which knows no text, goes on until the request is closed
        raise_failure(event, state.backend)
        if event.index == 0 and event.num_prefix_hit_tokens > num_cached_tokens:
            tally.num_cached_tokens += event.num_prefix_hit_tokens - num_cached_tokens
            num_cached_tokens = event.num_prefix_hit_tokens
        prompt_logprobs = event.prompt_logprobs or prompt_logprobs
        if echo is not None and choice in unechoed:
            assert echo.sampling.prompt_logprobs is None or prompt_logprobs, "they come before any sequence goes on"
            unechoed.remove(choice)
            yield choice.echo(echo.prompt_token_ids, prompt_logprobs)
        piece = choice.push(event)
        _count(tally, event, piece, state.clock())
        tally.longest_output_tokens = max(tally.longest_output_tokens, choice.num_tokens)
        yield piece
        num_unfinished -= choice.finish_reason is not None
        if num_unfinished == 0:
            await stream.aclose()
            return
    raise EngineError("The engine ended a request without finishing every sequence.")


def _count(tally: Tally, event: TokenEvent, piece: Piece, now: float) -> None:
    if piece.token_ids:
        tally.num_output_tokens += len(piece.token_ids)
        tally.last_token_at = now
        if tally.first_token_at is None:
            tally.first_token_at = now
    if event.timings is not None and tally.scheduled_at is None:
        tally.scheduled_at = event.timings.scheduled_at
    if piece.finish_reason is not None:
        tally.finish_reasons.append(piece.finish_reason)
