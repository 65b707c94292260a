"""Limits of the engine's steps, and around them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from service.engine.synthetic import StepCost
from service.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of a step. Raises ConfigError, naming the setting.

    What is not begun `queue_timeout_s` after its arrival is ended, unless its request says by when it must be done.
    A step may judge guesses of up to `num_speculative_tokens` tokens of each sequence, where that pays by `step_cost`:
    what a step is expected to cost.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    prefix_caching: bool = True
    queue_timeout_s: float = math.inf
    num_speculative_tokens: int = 0
    step_cost: StepCost = field(default_factory=StepCost)

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ConfigError("max_num_seqs must be at least 1.")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                "max_num_batched_tokens must be at least max_num_seqs: each running sequence gets a token every step."
            )
        if not self.queue_timeout_s > 0.0:
            raise ConfigError("queue_timeout_s must be greater than 0.")
        if self.num_speculative_tokens < 0:
            raise ConfigError("num_speculative_tokens must be 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """Raises ConfigError, naming the setting.

    Beyond the `max_num_seqs` sequences that may run, `max_waiting` are accepted. A step, or work that is not taken up,
    may last `heartbeat_timeout_s` before the engine counts as dead. `step_cost` is what a step is expected to cost, for
    the forecast of waiting times; without it there is none.
    """

    max_waiting: int = 256
    heartbeat_timeout_s: float = 60.0
    step_cost: StepCost = field(default_factory=StepCost)

    def __post_init__(self) -> None:
        if self.max_waiting < 0:
            raise ConfigError("max_waiting must be 0 or more.")
        if not self.heartbeat_timeout_s > 0.0:
            raise ConfigError("heartbeat_timeout_s must be greater than 0.")
