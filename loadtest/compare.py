"""Two runs side by side: ratios with intervals, and a warning when they are not comparable. Pure.

The interval of a ratio B/A comes from the two runs' own intervals on a logarithmic scale:
ln(B/A) ± √(h_A² + h_B²), where h is half the width of ln(interval). A difference is called real when it excludes 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadtest.results import Quantile, RunResult


@dataclass(frozen=True, slots=True)
class Ratio:
    """B / A with a 95 % interval (None where a run has none), for one measure at one level."""

    measure: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None

    @property
    def is_real(self) -> bool | None:
        """Whether the interval excludes 1; None when there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 1 or self.high < 1


def caveats(a: RunResult, b: RunResult) -> list[str]:
    """Why the comparison may not be fair, one sentence each."""
    found = [
        f"{name} is not valid: {run.validity.reasons[0]}"
        for name, run in (("A", a), ("B", b))
        if not run.validity.is_valid
    ]
    found += [f"{name} was stopped early." for name, run in (("A", a), ("B", b)) if run.validity.is_partial]
    if a.schedule.sha256 != b.schedule.sha256:
        found.append("The two runs did not send the same requests (schedule hashes differ).")
    if a.target.model != b.target.model:
        found.append(f"The models differ: {a.target.model} and {b.target.model}.")
    return found


def compare(a: RunResult, b: RunResult) -> list[Ratio]:
    """Every latency quantile that both have, then rates and the share of good requests."""
    rows: list[Ratio] = []
    for measure in type(a.latency).model_fields:
        for level in ("p50", "p90", "p99", "p99_9"):
            first = getattr(getattr(a.latency, measure), level)
            second = getattr(getattr(b.latency, measure), level)
            if first is not None and second is not None and first.value > 0 and second.value > 0:
                rows.append(_ratio(f"{measure} {level}", first, second))
    for measure in ("sent_rps", "ok_rps", "prompt_tokens_per_s", "output_tokens_per_s"):
        plain = getattr(a.rates, measure), getattr(b.rates, measure)
        if all(value is not None and value > 0 for value in plain):
            rows.append(Ratio(measure, plain[0], plain[1], plain[1] / plain[0], None, None))
    if a.goodput and b.goodput and a.goodput.slo == b.goodput.slo and a.goodput.share and b.goodput.share:
        rows.append(_share_ratio(a, b))
    return rows


def _share_ratio(a: RunResult, b: RunResult) -> Ratio:
    shares = [
        Quantile(value=goodput.share or 0.0, low=goodput.share_low or 0.0, high=goodput.share_high or 1.0)
        for goodput in (a.goodput, b.goodput)
        if goodput is not None
    ]
    return _ratio("good share", *shares)


def _ratio(measure: str, a: Quantile, b: Quantile) -> Ratio:
    ratio = b.value / a.value
    if min(a.low, b.low) <= 0:
        return Ratio(measure, a.value, b.value, ratio, None, None)
    half = math.hypot(*(math.log(quantile.high / quantile.low) / 2 for quantile in (a, b)))
    return Ratio(measure, a.value, b.value, ratio, ratio * math.exp(-half), ratio * math.exp(half))
