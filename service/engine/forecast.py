"""When a request that comes now would be begun, from what the engine's steps have taught.

    wait = slowdown · (steps · step time + prefill time of the prompts ahead)

Steps are as many as the prompts ahead need beside those that run, or as it takes until enough outputs have ended,
whichever is more; where drafts come true, outputs take fewer steps. What a step costs is the model's own law
(`StepCost`), times how much longer steps have taken lately.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.engine.synthetic import StepCost
from service.types import FinishReason, StepStats

_STEP_MEMORY = 0.98  # of what steps teach, per step: some fifty steps
_OUTPUT_MEMORY = 0.99  # of what ended sequences teach, per sequence
_PRIOR_TOKENS = 128.0  # of an output, and of a prompt, before one has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoom:
    """What bounds a step, and the tokens that the KV cache holds."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_kv_tokens: int


@dataclass(slots=True)
class Ahead:
    """What goes before: sequences that run, of which some would not make room, and those that wait, with their prompt
    tokens to compute and the output tokens to be expected of them."""

    num_running: float = 0.0
    num_staying: float = 0.0
    num_waiting: float = 0.0
    num_prompt_tokens: float = 0.0
    num_output_tokens: float = 0.0


class Forecast:
    """Learns from every step; says how long things would take, in seconds."""

    def __init__(self, cost: StepCost, room: EngineRoom) -> None:
        self._cost = cost
        self._room = room
        self._taken_s = 0.0
        self._expected_s = 0.0
        self._plain_s = 0.0
        self._drafted_s = 0.0
        self._num_queried = 0.0
        self._num_hit = 0.0
        self._num_ended = 1.0
        self._num_prompt_tokens = _PRIOR_TOKENS
        self._num_output_tokens = _PRIOR_TOKENS

    def learn(self, stats: StepStats) -> None:
        """Take in what a step brought."""
        if stats.num_scheduled:
            plain_s = self._cost.of(stats.num_scheduled, 0.0, stats.num_context_tokens)
            drafted_s = plain_s + self._cost.per_prefill_token_s * sum(num_drafted for num_drafted, _ in stats.drafts)
            expected_s = drafted_s + self._cost.per_prefill_token_s * stats.num_prefill_tokens
            self._plain_s = _STEP_MEMORY * self._plain_s + stats.num_plain_steps * plain_s
            self._drafted_s = _STEP_MEMORY * self._drafted_s + drafted_s
            self._taken_s = _STEP_MEMORY * self._taken_s + stats.duration_s
            self._expected_s = _STEP_MEMORY * self._expected_s + expected_s
            self._num_queried = _STEP_MEMORY * self._num_queried + stats.num_prefix_queried_tokens
            self._num_hit = _STEP_MEMORY * self._num_hit + stats.num_prefix_hit_tokens
        for reason, timings in stats.finished:
            if reason in (FinishReason.STOP, FinishReason.LENGTH):
                self._num_ended = _OUTPUT_MEMORY * self._num_ended + 1
                self._num_prompt_tokens = _OUTPUT_MEMORY * self._num_prompt_tokens + timings.num_prompt_tokens
                self._num_output_tokens = _OUTPUT_MEMORY * self._num_output_tokens + timings.num_output_tokens

    @property
    def mean_prompt_tokens(self) -> float:
        return self._num_prompt_tokens / self._num_ended

    @property
    def mean_output_tokens(self) -> float:
        return self._num_output_tokens / self._num_ended

    def uncached(self, num_prompt_tokens: int) -> float:
        """How many of them will have to be computed."""
        return num_prompt_tokens * (1.0 - self._num_hit / self._num_queried if self._num_queried else 1.0)

    def output_tokens(self, max_tokens: int) -> float:
        """How many tokens a sequence will have that may have so many."""
        return min(self.mean_output_tokens, max_tokens)

    def wait_s(self, ahead: Ahead) -> float:
        """Until a sequence behind all that is begun."""
        room, length = self._room, self.mean_prompt_tokens + self.mean_output_tokens
        places = max(1.0, min(room.max_num_seqs, room.num_kv_tokens / length))
        num_running = min(ahead.num_running, places)
        num_to_end = max(0.0, ahead.num_staying + ahead.num_waiting + 1.0 - places)
        num_output_tokens = ahead.num_output_tokens + self.mean_output_tokens
        steps_to_end = min(1.0, num_to_end / (ahead.num_waiting + 1.0)) * num_output_tokens / places
        steps_to_end *= self._drafted_s / self._plain_s if self._plain_s else 1.0
        steps = max(steps_to_end, self._num_chunks(ahead.num_prompt_tokens, num_running))
        return self._time_of(steps, num_running, ahead.num_prompt_tokens)

    def prompt_s(self, num_prompt_tokens: float) -> float:
        """What so many tokens of a prompt take once it is begun, alone."""
        return self._time_of(math.ceil(self._num_chunks(num_prompt_tokens, 0.0)), 0.0, num_prompt_tokens)

    def _num_chunks(self, num_prompt_tokens: float, num_running: float) -> float:
        return num_prompt_tokens / max(1.0, self._room.max_num_batched_tokens - num_running)

    def _time_of(self, steps: float, num_running: float, num_prompt_tokens: float) -> float:
        if not self._expected_s:
            return 0.0  # nothing has run, or nothing is known of what it costs
        context = num_running * (self.mean_prompt_tokens + 0.5 * self.mean_output_tokens)
        step_s = self._cost.of(num_running, 0.0, context)
        return self._taken_s / self._expected_s * (steps * step_s + self._cost.per_prefill_token_s * num_prompt_tokens)
