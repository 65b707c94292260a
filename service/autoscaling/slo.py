"""What good service is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.errors import ConfigError
from service.types import SequenceTimings


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """A request is met when its first token comes within `ttft_s` (beyond the time its own prompt takes on an idle
    replica) and the others within `tpot_s` each, on average. Raises ConfigError, naming the target."""

    ttft_s: float = 2.0
    tpot_s: float = 0.1

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name} must be a positive number of seconds, but is {value:g}.")

    def is_met(self, timings: SequenceTimings) -> bool:
        """Whether a finished sequence was served well by the clock alone, whatever its prompt; what got no token was
        not asked to be."""
        first, last, num_later = timings.first_token_at, timings.last_token_at, timings.num_output_tokens - 1
        if first is None or last is None:
            return True
        return first - timings.arrival_at <= self.ttft_s and last - first <= self.tpot_s * max(0, num_later)
