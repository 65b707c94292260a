"""What a run asks for: one frozen, validated `Scenario`. Unknown keys are errors that name the closest known one.

Durations are seconds, rates are per second, lengths are tokens.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, SecretStr, model_validator

from loadtest.errors import ScenarioError
from loadtest.kinds import Arrivals, Closed, Constant, Distribution, Ratio, Spec


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
