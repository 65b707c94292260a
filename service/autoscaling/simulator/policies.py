"""Policies by name, with the parameters that are tried when one is tuned in hindsight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.autoscaling.config import AutoscalingConfig
from service.autoscaling.simulator.baselines import (
    Hpa,
    Knative,
    RayServe,
    Saturation,
    SloAware,
    Static,
    TokenAware,
    Utilisation,
)
from service.autoscaling.simulator.fleet import Controller, FleetConfig
from service.autoscaling.simulator.headcount import Headcount, PerfectForecast
from service.autoscaling.simulator.workload import Workload
from service.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a policy is to work."""

    config: AutoscalingConfig
    fleet: FleetConfig
    workload: Workload


@dataclass(frozen=True, slots=True)
class Policy:
    """`make` gives a fresh controller for one run; `default` is what its makers ship, `sweep` what tuning tries. None
    where there is nothing to set."""

    make: Callable[[Setting, float], Controller]
    default: float | None
    sweep: tuple[float, ...]
    meaning: str


_TARGETS = (4.0, 8.0, 12.0, 16.0, 24.0)  # requests per replica

POLICIES: dict[str, Policy] = {
    "headcount": Policy(lambda s, _: Headcount(s.config), None, (), "the law of this service"),
    "perfect": Policy(
        lambda s, margin: PerfectForecast(s.config, s.fleet, s.workload, margin),
        1.0,
        (0.8, 0.9, 1.0, 1.1),
        "the need known ahead, times a margin",
    ),
    "static": Policy(lambda _, n: Static(int(n)), 6.0, (4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16), "so many replicas"),
    "ray": Policy(
        lambda s, target: RayServe(s.config, target),
        2.0,
        _TARGETS,
        "Ray Serve, its delays; ongoing requests per replica",
    ),
    "ray-tuned": Policy(
        lambda s, target: RayServe(s.config, target, up_s=0, down_s=60, look_back_s=4, every_s=1),
        8.0,
        _TARGETS,
        "Ray Serve, up at once and down after 60 s; ongoing requests per replica",
    ),
    "kpa": Policy(lambda s, target: Knative(s.config, target), 8.0, _TARGETS, "Knative; ongoing requests per replica"),
    "keda-ongoing": Policy(
        lambda s, target: Hpa(s.config, lambda load: load.num_ongoing / target),
        16.0,
        _TARGETS,
        "KEDA on running and waiting requests per replica",
    ),
    "keda-queue": Policy(
        lambda s, target: Hpa(s.config, lambda load: load.num_waiting / target),
        5.0,
        (1.0, 5.0),
        "KEDA on waiting requests per replica",
    ),
    "hpa": Policy(lambda s, u: Hpa(s.config, Utilisation(u)), 0.7, (0.5, 0.7, 0.9), "HPA on the busy share (0-1)"),
    "saturation": Policy(
        lambda s, kv: Saturation(s.config, kv=kv), 0.8, (0.8,), "thresholds on cache use (0-1) and queue, one step"
    ),
    "token-aware": Policy(
        lambda s, within_s: TokenAware(s.config, s.fleet.cost, within_s=within_s),
        1.5,
        (1.5,),
        "llm-d: prompt tokens in flight computed within so many seconds",
    ),
    "slo-aware": Policy(
        lambda s, up_at: SloAware(s.config, up_at, up_at - 0.15),
        0.55,
        (0.55,),
        "llm-d: P90 latency over its target, up above this, down 0.15 below",
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A policy with its parameter: `kpa=12`."""

    name: str
    parameter: float | None

    @classmethod
    def parse(cls, text: str) -> Choice:
        """`NAME` or `NAME=NUMBER`. Raises ConfigError, naming the policies there are."""
        name, _, value = text.partition("=")
        if name not in POLICIES:
            raise ConfigError(f"There is no policy {name!r}: it must be one of {', '.join(POLICIES)}.")
        default = POLICIES[name].default
        if not value:
            return cls(name, default)
        try:
            parameter = float(value)
        except ValueError:
            raise ConfigError(f"The parameter of policy {name} must be a number, but is {value!r}.") from None
        if default is None or parameter <= 0.0:
            raise ConfigError(f"Policy {name} takes {'no parameter' if default is None else 'a positive parameter'}.")
        return cls(name, parameter)

    @property
    def label(self) -> str:
        return self.name if self.parameter is None else f"{self.name}={self.parameter:g}"

    def controller(self, setting: Setting) -> Controller:
        return POLICIES[self.name].make(setting, self.parameter or 0.0)


def swept(name: str) -> list[Choice]:
    """Every parameter that tuning tries for a policy."""
    policy = POLICIES[name]
    return [Choice(name, parameter) for parameter in policy.sweep] or [Choice(name, policy.default)]
