"""One line that says what a run found."""

from __future__ import annotations

from loadtest.results import Counts, Goodput, Latencies, Quantile, Rates, Validity


def verdict(
    counts: Counts, rates: Rates, latency: Latencies, goodput: Goodput | None, validity: Validity, *, is_open_loop: bool
) -> str:
    """Validity first: numbers of an invalid run are the tester's."""
    parts = [_slo(goodput) if goodput else f"{counts.ok} of {counts.planned} requests complete"]
    rate = f"at {rates.sent_rps:.3g} req/s" if is_open_loop else "in a closed loop (latencies hide queueing)"
    parts[0] += f" {rate}"
    if latency.ttft_s.p50 is not None:
        parts.append(f"TTFT p50 {duration(latency.ttft_s.p50)}, p99 {duration(latency.ttft_s.p99)}")
    if latency.tpot_s.p50 is not None:
        parts.append(f"TPOT p50 {duration(latency.tpot_s.p50)}")
    if rates.output_tokens_per_s is not None:
        parts.append(f"{rates.output_tokens_per_s:.0f} output tok/s")
    if counts.failed:
        parts.append(f"{counts.failed} failed")
    line = "; ".join(parts) + "."
    if validity.is_partial:
        line = f"PARTIAL, stopped early: {line}"
    return line if validity.is_valid else f"INVALID RUN ({validity.reasons[0]}) {line}"


def _slo(goodput: Goodput) -> str:
    word = "SLO held" if goodput.is_held else "SLO broken"
    if goodput.share is None or goodput.share_low is None or goodput.share_high is None:
        return f"{word}: no request counted"
    wanted = goodput.slo["share"]
    return (
        f"{word}: {goodput.share:.1%} of {goodput.of} requests good"
        f" (95 % interval {goodput.share_low:.1%} to {goodput.share_high:.1%}, wanted {wanted:.0%}),"
        f" goodput {goodput.goodput_rps:.3g} req/s"
    )


def duration(value: Quantile | float | None) -> str:
    """Seconds for people: three digits, in the unit that fits."""
    seconds = value.value if isinstance(value, Quantile) else value
    if seconds is None:
        return "-"
    if abs(seconds) >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms"
