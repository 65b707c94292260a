"""The kinds of distributions and arrivals that a scenario may name.

Durations are seconds, rates are per second, lengths are tokens. A plain number stands for a constant distribution.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

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
