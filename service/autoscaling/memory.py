"""All that the policy remembers between two decisions: immutable, and JSON to keep it over restarts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.cost_model import Fit, Mix
from service.autoscaling.forecast import Demand
from service.autoscaling.holds import Holds
from service.autoscaling.ledger import Counters, Ledger, Observed
from service.errors import ConfigError

_T = TypeVar("_T")

_VERSION = 2
_PRIOR_REQUESTS = 2.0  # what the prior mix weighs
_MEMORY_REQUESTS = 200.0  # after so many requests an older one counts 1/e


@dataclass(frozen=True, slots=True)
class Mixture:
    """Fading sums over recent requests: of arrivals, and of finished ones, whose outputs are known."""

    num_requests: float
    num_prompt_tokens: float
    num_hit_tokens: float
    num_finished: float
    num_output_tokens: float

    def observe(self, seen: Observed) -> Mixture:
        arrived = float(np.exp(-seen.num_requests / _MEMORY_REQUESTS))
        finished = float(np.exp(-seen.num_finished / _MEMORY_REQUESTS))
        return Mixture(
            arrived * self.num_requests + seen.num_requests,
            arrived * self.num_prompt_tokens + seen.num_prompt_tokens,
            arrived * self.num_hit_tokens + seen.num_hit_tokens,
            finished * self.num_finished + seen.num_finished,
            finished * self.num_output_tokens + seen.num_output_tokens,
        )

    @property
    def hit_share(self) -> float:
        """Of prompt tokens that the prefix cache brings, 0-1."""
        return min(0.99, self.num_hit_tokens / self.num_prompt_tokens) if self.num_prompt_tokens > 0.0 else 0.0

    @property
    def mix(self) -> Mix:
        num_prompt = max(1.0, self.num_prompt_tokens / max(1e-9, self.num_requests))
        return Mix(
            num_uncached_tokens=num_prompt * (1.0 - self.hit_share),
            num_prompt_tokens=num_prompt,
            num_output_tokens=max(1.0, self.num_output_tokens / max(1e-9, self.num_finished)),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """`watched_s`: how long the fleet has been watched without a break. `trend` is in replicas per second."""

    ledger: Ledger
    fit: Fit
    mixture: Mixture
    demand: Demand
    holds: Holds
    watched_s: float = 0.0
    trend: float = 0.0

    @classmethod
    def fresh(cls, config: AutoscalingConfig) -> Memory:
        """Nothing seen yet: priors only."""
        prior = _PRIOR_REQUESTS
        return cls(
            ledger=Ledger(),
            fit=Fit.of_prior(config.cost_prior),
            mixture=Mixture(prior, prior * config.prompt_tokens_prior, 0.0, prior, prior * config.output_tokens_prior),
            demand=Demand.fresh(),
            holds=Holds.fresh(config.max_replicas),
        )

    def to_json(self) -> str:
        values = asdict(self) | {"version": _VERSION}
        return json.dumps(values, default=lambda array: array.tolist())

    @classmethod
    def from_json(cls, text: str, config: AutoscalingConfig) -> Memory:
        """What `to_json` wrote, or ConfigError when it is of another version, number of replicas or shape."""
        try:
            values = json.loads(text)
            assert values.pop("version") == _VERSION, "it is of another version"
            ledger = values.pop("ledger")
            counters = ledger.pop("counters")
            memory = cls(
                ledger=Ledger(
                    counters=None if counters is None else {key: Counters(*row) for key, row in counters.items()},
                    **ledger,
                ),
                fit=_restored(Fit, values.pop("fit")),
                mixture=Mixture(**values.pop("mixture")),
                demand=_restored(Demand, values.pop("demand")),
                holds=_restored(Holds, values.pop("holds")),
                **values,
            )
        except (AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"The autoscaler's memory cannot be read: {error}. Remove it to start afresh.") from None
        if len(memory.holds.idle_s) != config.max_replicas:
            raise ConfigError("The autoscaler's memory is of another max_replicas. Remove it to start afresh.")
        return memory


def _restored(kind: type[_T], values: dict[str, Any]) -> _T:
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    assert known == values.keys(), f"{kind.__name__} has other fields"
    return kind(
        **{key: np.array(value, dtype=float) if isinstance(value, list) else value for key, value in values.items()}
    )
