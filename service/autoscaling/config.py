"""What a person sets: what good service is, what a replica and a miss cost, and how far to go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from service.autoscaling.slo import Slo
from service.engine.synthetic import StepCost
from service.errors import ConfigError

_COST_PRIOR = StepCost(base_s=0.02, per_sequence_s=1e-3, per_prefill_token_s=2e-4, per_context_token_s=1e-7)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingConfig:
    """`replica_s_per_miss` is the price: the replica-seconds that it is worth to spare one request a miss (a cost per
    miss divided by a cost per replica-second). `refuses_late`: the service turns away what could not start in time, so
    that too much demand costs its excess and not everyone. There is nothing to tune: priors are believed until the
    fleet has shown better, within a minute. Raises ConfigError, naming the setting.
    """

    slo: Slo = field(default_factory=Slo)
    replica_s_per_miss: float = 30.0
    min_replicas: int = 1
    max_replicas: int = 24
    refuses_late: bool = False
    cold_start_prior_s: float = 15.0
    prompt_tokens_prior: float = 1000.0
    output_tokens_prior: float = 200.0
    cost_prior: StepCost = _COST_PRIOR

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas:
            raise ConfigError("min_replicas must be between 0 and max_replicas.")
        if self.max_replicas < 1:
            raise ConfigError("max_replicas must be at least 1.")
        for name in ("replica_s_per_miss", "cold_start_prior_s", "prompt_tokens_prior", "output_tokens_prior"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name} must be a positive number, but is {value:g}.")
