"""What crosses the wall between HTTP and engine: requests in, token events out.

Standard library only, frozen, validated once at birth: a `GenerateRequest` that exists is well formed.
Token ids and numbers, never text: text lives in `service.text`, HTTP in `service.api`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from service.errors import InvalidRequestError

MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 128


class FinishReason(StrEnum):
    """Why a sequence ended. Every accepted sequence ends with exactly one of these."""

    STOP = "stop"  # an end-of-sequence or stop token, or a stop string
    LENGTH = "length"  # max_tokens or the model's context is used up
    ABORT = "abort"  # the client went away or asked for it, or the server shut down first
    ERROR = "error"  # the engine could not go on with this sequence; `TokenEvent.error` says why
    TIMEOUT = "timeout"  # it was not begun, or not done, when its time was up


def _check(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise InvalidRequestError(message, param=param)


def _in_range(value: float, low: float, high: float, param: str) -> None:
    _check(
        math.isfinite(value) and low <= value <= high,
        param,
        f"{param} must be between {low:g} and {high:g}, but is {value:g}.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen and when to stop. The one place where ranges are checked.

    temperature 0 is greedy (argmax); `top_k` 0, `top_p` 1 and `min_p` 0 are off. `repetition_penalty` divides or
    multiplies logits of tokens in prompt or output; `presence_` and `frequency_penalty` look at the output only.
    `logprobs` is None for none, else how many alternatives come with each sampled token (raw: before temperature, bias
    and penalties). `seed` None means fresh randomness; sequence i of n draws with seed + i.
    Raises InvalidRequestError, naming the field.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        # max_tokens 0 only scores the prompt: there is nothing else to ask of it.
        floor = 0 if self.prompt_logprobs is not None else 1
        _check(self.max_tokens >= floor, "max_tokens", f"max_tokens must be at least {floor}.")
        _check(
            0 <= self.min_tokens <= self.max_tokens,
            "min_tokens",
            "min_tokens must be between 0 and max_tokens.",
        )
        _in_range(self.temperature, 0.0, 2.0, "temperature")
        _check(self.top_k >= 0, "top_k", "top_k must be 0 (off) or more.")
        _in_range(self.top_p, 0.0, 1.0, "top_p")
        _check(self.top_p > 0.0, "top_p", "top_p must be greater than 0.")
        _in_range(self.min_p, 0.0, 1.0, "min_p")
        _in_range(self.repetition_penalty, 0.01, 10.0, "repetition_penalty")
        _in_range(self.presence_penalty, -2.0, 2.0, "presence_penalty")
        _in_range(self.frequency_penalty, -2.0, 2.0, "frequency_penalty")
        for token_id, bias in self.logit_bias:
            _check(token_id >= 0, "logit_bias", "logit_bias keys must be token ids (0 or more).")
            _in_range(bias, -100.0, 100.0, "logit_bias")
        if self.seed is not None:
            _check(-(2**63) <= self.seed < 2**63, "seed", "seed must be a 64-bit integer.")
        for value, param in ((self.logprobs, "logprobs"), (self.prompt_logprobs, "prompt_logprobs")):
            if value is not None:
                _in_range(value, 0, MAX_TOP_LOGPROBS, param)


class TokenMatcher(Protocol):
    """Which tokens may come next in one sequence. Used by one thread."""

    def mask(self, output_token_ids: Sequence[int]) -> bytes:
        """Bit i % 8 of byte i // 8 is set where token i may follow `output_token_ids`; ids beyond the mask may not.

        The output continues that of the call before, or a beginning of it; an end-of-sequence token may follow where it
        may end. Raises GrammarError when the sequence cannot go on.
        """
        ...


class TokenGrammar(Protocol):
    """What an output must look like. May be shared by requests and threads."""

    def matcher(self) -> TokenMatcher:
        """One for a new sequence."""
        ...


class Adapter(Protocol):
    """Weights that a model adds to its own for some requests. It never changes, and lives while anyone holds it."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> bytes:
        """A digest of its content: what equal keys compute from equal tokens is equal."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asks, and until when. Tenants share a busy engine by `weight`, after those of a higher `priority`.

    `deadline_at` is a reading of the process's monotonic clock, after which nobody wants the answer any more; without
    one, the server limits how long a request may wait to be begun.
    """

    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline_at: float = math.inf

    def __post_init__(self) -> None:
        assert 0.0 < self.weight < math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One request as the engine sees it: `n` sequences that continue the same prompt.

    Each output follows `grammar`, if there is one, and ends where it ends. `adapter` None is the model as it is.
    `arrival_at` is a reading of the process's monotonic clock (seconds).
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    grammar: TokenGrammar | None = None
    adapter: Adapter | None = None
    arrival_at: float
    claim: Claim = Claim()

    @property
    def most_tokens(self) -> int:
        """Of prompt and outputs together."""
        return len(self.prompt_token_ids) + self.n * self.sampling.max_tokens

    def __post_init__(self) -> None:
        _check(len(self.prompt_token_ids) > 0, "prompt", "The prompt has no tokens.")
        _check(1 <= self.n <= MAX_CHOICES, "n", f"n must be between 1 and {MAX_CHOICES}.")
        if self.grammar is not None:
            why = "cannot be combined with structured output or tools: their grammar says where the output ends."
            _check(not self.sampling.ignore_eos, "ignore_eos", f"ignore_eos {why}")
            _check(self.sampling.min_tokens == 0, "min_tokens", f"min_tokens {why}")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one token, with the most likely alternatives, best first.

    `logprob` is finite: minus infinity is reported as `service.types.MIN_LOGPROB`.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


MIN_LOGPROB = -9999.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceTimings:
    """Instants (monotonic seconds) and counts of one finished sequence; None where it never got that far."""

    arrival_at: float
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """What one engine step did for one sequence.

    `token_ids` are the new tokens (none in a terminal event that brings no token; the last one is the stop token when
    `finish_reason` is STOP). `logprobs` is aligned with `token_ids` when asked for. `prompt_logprobs` comes once, with
    the first event of sequence 0, which precedes those of the others: entry 0 is None (nothing precedes it). `timings`
    comes with the first event and with the terminal one.
    """

    request_id: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    num_prefix_hit_tokens: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    timings: SequenceTimings | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """What one engine step did, for whoever keeps the metrics. Times in seconds, ratios 0-1.

    Counts are of this step; `num_running`, `num_waiting`, `num_prefill_left` (known tokens that wait to be computed),
    `kv_usage` and `wait_s` (until a request that comes now would be begun) are the state after it. `num_scheduled`
    sequences took part: `num_prefill_tokens` are their known new tokens beyond the first of each, `num_context_tokens`
    what they attend to. `num_arrived` sequences with `num_arrived_prompt_tokens` were accepted since the step before,
    and `num_refused` with about `num_refused_prompt_tokens` were turned away. `ttft_s` has one entry per first token,
    `itl_s` one per sequence that got later ones: the time since the step that brought the one before. `finished` has
    one entry per sequence that ended, `drafts` one per draft: how many tokens it had, and how many of them were right.
    `running_adapters` and `waiting_adapters` are the names of those that sequences use after the step.
    """

    duration_s: float
    num_running: int
    num_waiting: int
    kv_usage: float
    wait_s: float = 0.0
    num_prefill_left: int = 0
    num_arrived: int = 0
    num_arrived_prompt_tokens: int = 0
    num_refused: int = 0
    num_refused_prompt_tokens: int = 0
    num_scheduled: int = 0
    num_prefill_tokens: int = 0
    num_context_tokens: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_prefix_queried_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    ttft_s: tuple[float, ...] = ()
    itl_s: tuple[float, ...] = ()
    finished: tuple[tuple[FinishReason, SequenceTimings], ...] = ()
    drafts: tuple[tuple[int, int], ...] = ()
    running_adapters: frozenset[str] = frozenset()
    waiting_adapters: frozenset[str] = frozenset()

    @property
    def num_plain_steps(self) -> float:
        """How many steps would have brought as much without drafts, each a token for each sequence."""
        num_accepted = sum(accepted for _, accepted in self.drafts)
        return self.num_output_tokens / (self.num_output_tokens - num_accepted) if num_accepted else 1.0
