"""One generation in progress: the only mutable state that the parts of the engine share.

Two numbers stand in for modes: `num_tokens` are known (prompt + output), `num_computed_tokens` have their K and V in
the cache, and a step computes some of the difference. Once all are computed, the step samples the next token.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum, auto

from service.engine.drafter import Drafter
from service.types import (
    Adapter,
    Claim,
    FinishReason,
    GenerateRequest,
    SamplingParams,
    SequenceTimings,
    TokenLogprob,
    TokenMatcher,
)


class SequenceStatus(Enum):
    WAITING = auto()  # owns no blocks
    RUNNING = auto()  # owns blocks for all its known tokens, once scheduled
    FINISHED = auto()  # owns no blocks; never scheduled again


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Choice `index` of one request.

    `token_ids` is the prompt, then the output. `stop_token_ids` end it, the model's end-of-sequence tokens included
    unless they are to be ignored. The block manager owns `block_table` (ids in order of position) and `block_digests`
    (names of the leading full blocks by content, filled on demand). `prompt_logprobs[i]` is of prompt token i + 1.
    Instants are monotonic seconds.
    """

    request_id: str
    index: int
    sampling: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]
    token_ids: list[int]
    num_prompt_tokens: int
    arrival_at: float
    claim: Claim = field(default_factory=Claim)
    matcher: TokenMatcher | None = None
    adapter: Adapter | None = None
    drafter: Drafter | None = None
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_digests: list[bytes] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_prefix_hit_tokens: int = 0
    num_reported_prompt_tokens: int = 0  # found or computed, each once, however often the sequence is preempted
    num_preemptions: int = 0
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    def __post_init__(self) -> None:
        assert 0 < self.num_prompt_tokens <= self.num_tokens
        assert 0 <= self.num_computed_tokens < self.num_tokens

    @classmethod
    def of(cls, request: GenerateRequest, index: int, *, fresh_seed: int, eos_token_ids: frozenset[int]) -> Sequence:
        """Choice `index` of `request`; `fresh_seed` is used when the request brings no seed."""
        sampling = request.sampling
        return cls(
            request_id=request.request_id,
            index=index,
            sampling=sampling,
            seed=fresh_seed if sampling.seed is None else sampling.seed + index,
            stop_token_ids=sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else eos_token_ids),
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            arrival_at=request.arrival_at,
            claim=request.claim,
            adapter=request.adapter,
        )

    def continued(self, token_ids: tuple[int, ...]) -> Sequence:
        """A copy to sample from, as it is when `token_ids` have been sampled."""
        return replace(self, token_ids=[*self.token_ids, *token_ids])

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def forbidden_token_ids(self) -> frozenset[int]:
        """What must not come next: a stop token before `min_tokens` others."""
        return self.stop_token_ids if self.num_output_tokens < self.sampling.min_tokens else frozenset()

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.sampling.prompt_logprobs is not None and self.index == 0

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether some are still to come, so that the prompt must be computed and not found in the prefix cache."""
        return self.wants_prompt_logprobs and len(self.prompt_logprobs) < self.num_prompt_tokens - 1

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Why the sequence is complete, or None when it goes on. All its tokens but a just sampled one are computed."""
        num_output_tokens = self.num_output_tokens
        if num_output_tokens > self.sampling.min_tokens and self.token_ids[-1] in self.stop_token_ids:
            return FinishReason.STOP
        if num_output_tokens >= self.sampling.max_tokens or self.num_tokens >= max_model_len:
            return FinishReason.LENGTH
        return None

    def timings(self) -> SequenceTimings:
        return SequenceTimings(
            arrival_at=self.arrival_at,
            scheduled_at=self.scheduled_at,
            first_token_at=self.first_token_at,
            last_token_at=self.last_token_at,
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_prefix_hit_tokens=self.num_prefix_hit_tokens,
            num_preemptions=self.num_preemptions,
        )
