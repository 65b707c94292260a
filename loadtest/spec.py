"""What a run asks for: one frozen, validated `Scenario`. Unknown keys are errors that name the closest known one.

Durations are seconds, rates are per second, lengths are tokens. A plain number stands for a constant distribution.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

from loadtest.errors import ScenarioError

Ratio = Annotated[float, Field(ge=0, le=1)]


class Spec(BaseModel):
    """Base of everything read from outside."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Constant(Spec):
    kind: Literal["constant"] = "constant"
    value: NonNegativeFloat


class Uniform(Spec):
    kind: Literal["uniform"]
    low: NonNegativeFloat
    high: NonNegativeFloat

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


class LogNormal(Spec):
    """exp(Normal(ln median, sigma)), clipped to [low, high]: the usual shape of prompt and reply lengths."""

    kind: Literal["lognormal"]
    median: PositiveFloat
    sigma: NonNegativeFloat
    low: NonNegativeFloat = 1
    high: PositiveFloat


class Choice(Spec):
    """One of `values`, by `weights` (equal when absent)."""

    kind: Literal["choice"]
    values: tuple[NonNegativeFloat, ...] = Field(min_length=1)
    weights: tuple[NonNegativeFloat, ...] | None = None

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if self.weights is not None and (len(self.weights) != len(self.values) or sum(self.weights) <= 0):
            raise ValueError("weights must be one per value, with a positive sum")
        return self


def _number_is_constant(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"kind": "constant", "value": value} if is_number else value


Distribution = Annotated[
    Annotated[Constant | Uniform | LogNormal | Choice, Field(discriminator="kind")],
    BeforeValidator(_number_is_constant),
]


class ConstantRate(Spec):
    """Equal gaps."""

    kind: Literal["constant"]
    rate_rps: PositiveFloat
    duration_s: PositiveFloat


class Poisson(Spec):
    """Independent arrivals: many users who do not know each other."""

    kind: Literal["poisson"]
    rate_rps: PositiveFloat
    duration_s: PositiveFloat


class Gamma(Spec):
    """Gamma-distributed gaps with coefficient of variation `cv`: 1 is Poisson, above is burstier, below is smoother."""

    kind: Literal["gamma"]
    rate_rps: PositiveFloat
    cv: PositiveFloat
    duration_s: PositiveFloat


class Step(Spec):
    """Rate `steps[i][1]` from second `steps[i][0]` until the next step; the first step begins at 0."""

    kind: Literal["step"]
    steps: tuple[tuple[NonNegativeFloat, NonNegativeFloat], ...] = Field(min_length=1)
    duration_s: PositiveFloat
    cv: NonNegativeFloat = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        starts = [start for start, _ in self.steps]
        if starts[0] != 0 or any(a >= b for a, b in zip(starts, [*starts[1:], self.duration_s], strict=True)):
            raise ValueError("steps must begin at 0, rise, and end before duration_s")
        return self


class Ramp(Spec):
    kind: Literal["ramp"]
    from_rps: NonNegativeFloat
    to_rps: NonNegativeFloat
    duration_s: PositiveFloat
    cv: NonNegativeFloat = 1


class Sinusoid(Spec):
    """rate(t) = mean_rps · (1 − swing · cos(2πt / period_s)): a day in minutes, from its quiet hour."""

    kind: Literal["sinusoid"]
    mean_rps: PositiveFloat
    swing: Ratio = 0.8
    period_s: PositiveFloat
    duration_s: PositiveFloat
    cv: NonNegativeFloat = 1


class Burst(Spec):
    """`base_rps`, and in the last `burst_s` of every `every_s` seconds `burst_rps` instead."""

    kind: Literal["burst"]
    base_rps: NonNegativeFloat
    burst_rps: PositiveFloat
    every_s: PositiveFloat
    burst_s: PositiveFloat
    duration_s: PositiveFloat
    cv: NonNegativeFloat = 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.burst_s >= self.every_s:
            raise ValueError("burst_s must be below every_s")
        return self


class Trace(Spec):
    """Real arrivals (and lengths, where the file has them) from `path`; its format is recognised by its first line.

    The slice [start_s, start_s + length_s) of the trace is taken, played `speed` times as fast, `loops` times over.
    Token counts are multiplied by `token_scale` (a small model cannot hold the prompts of a large one).
    """

    kind: Literal["trace"]
    path: str
    speed: PositiveFloat = 1
    start_s: NonNegativeFloat = 0
    length_s: PositiveFloat | None = None
    loops: PositiveInt = 1
    token_scale: PositiveFloat = 1


class Closed(Spec):
    """Closed loop: `concurrency` clients, each sends when its last answer is complete.

    A slow server slows its own load, so latencies say nothing about a queue: use it for throughput, not for SLOs.
    """

    kind: Literal["closed"]
    concurrency: PositiveInt
    num_requests: PositiveInt


Arrivals = Annotated[
    ConstantRate | Poisson | Gamma | Step | Ramp | Sinusoid | Burst | Trace | Closed, Field(discriminator="kind")
]


class Tenant(Spec):
    """One customer: a share of the requests by `weight`, its own API key, and its own lengths where they differ."""

    name: str = Field(min_length=1)
    weight: PositiveFloat = 1
    api_key: SecretStr | None = None
    api_key_env: str | None = Field(default=None, description="environment variable that holds the key")
    prompt_tokens: Distribution | None = None
    output_tokens: Distribution | None = None

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key is not None and self.api_key_env is not None:
            raise ValueError("give api_key or api_key_env, not both")
        return self

    def key(self) -> str | None:
        """The API key, or None. Raises ScenarioError when its variable is not set."""
        if self.api_key_env is None:
            return self.api_key.get_secret_value() if self.api_key is not None else None
        if self.api_key_env not in os.environ:
            raise ScenarioError(f"Tenant {self.name}: the environment variable {self.api_key_env} is not set.")
        return os.environ[self.api_key_env]


class SharedPrefix(Spec):
    """Each first turn begins with one of `groups` common texts of `tokens` tokens."""

    groups: PositiveInt
    tokens: PositiveInt


class Conversation(Spec):
    """Arrivals start conversations of `turns`; each turn sends the whole history, `think_s` after the last answer."""

    turns: Distribution
    think_s: Distribution = Constant(value=1.0)


class Disconnect(Spec):
    """This share of clients closes the connection `after_s` after it meant to send."""

    share: Ratio
    after_s: Distribution


class Workload(Spec):
    prompt_tokens: Distribution = Constant(value=64)
    output_tokens: Distribution = Constant(value=32)
    prompts_file: str | None = Field(default=None, description="JSONL of real prompts; prompt_tokens is then not used")
    shared_prefix: SharedPrefix | None = None
    conversation: Conversation | None = None
    tenants: tuple[Tenant, ...] = (Tenant(name="default"),)
    disconnect: Disconnect | None = None
    deadline_s: Distribution | None = Field(
        default=None, description="the client gives up this long after it meant to send"
    )
    ignore_eos: bool = Field(default=True, description="ask for exactly output_tokens (an extension most servers know)")
    extra_body: dict[str, Any] = Field(default={}, description="merged into each request's JSON")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        if not names or len(set(names)) != len(names):
            raise ValueError("tenants must be at least one, with distinct names")
        return self


class Slo(Spec):
    """A request is good when it is complete within each limit; the SLO holds when at least `share` of them are good."""

    ttft_s: PositiveFloat | None = None
    tpot_s: PositiveFloat | None = None
    e2e_s: PositiveFloat | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.ttft_s is None and self.tpot_s is None and self.e2e_s is None:
            raise ValueError("an SLO needs at least one of ttft_s, tpot_s, e2e_s")
        return self


class Limits(Spec):
    """Bounds that no run exceeds."""

    max_requests: PositiveInt = 100_000
    max_duration_s: PositiveFloat = 3600
    max_in_flight: PositiveInt = Field(default=8192, description="a request beyond it is dropped, the run invalid")
    timeout_s: PositiveFloat = Field(default=300, description="longest time for one request, from when it was due")
    accepted_lateness_s: NonNegativeFloat = Field(default=0.005, description="the tester may be this late in any case")
    max_retries: Annotated[int, Field(ge=0)] = Field(
        default=0, description="times a 429 or 503 with Retry-After is tried again, never sooner than told"
    )


class Scenario(Spec):
    """Everything that determines what is sent: equal scenarios send the same requests at the same instants."""

    name: str = "unnamed"
    reason: str = Field(default="", description="why this scenario exists: what it would show")
    api: Literal["chat", "completions"] = "chat"
    seed: Annotated[int, Field(ge=0)] = 0
    warmup_s: NonNegativeFloat = Field(default=0, description="requests due before this are sent but not measured")
    verify_share: Ratio = Field(default=0, description="share of requests repeated alone afterwards: same text?")
    arrivals: Arrivals
    workload: Workload = Workload()
    slo: Slo | None = None
    limits: Limits = Limits()

    @property
    def is_open_loop(self) -> bool:
        return not isinstance(self.arrivals, Closed)
