"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.compare import Ratio
from loadtest.report import LATENCY_LABELS
from loadtest.results import Quantile, RunResult
from loadtest.sweep import Step
from loadtest.verdict import duration


def show_result(result: RunResult, console: Console) -> None:
    """Latencies, what went wrong, whether both sides count the same, and last the verdict."""
    console.print(_latency_table(result))
    for error in result.errors:
        what = f"{error.outcome} {error.status or ''} {error.code or ''}".strip()
        console.print(f"error: {error.count} times {what}: {error.example or ''}", markup=False)
    if result.retries.advised:
        retries = result.retries
        console.print(
            f"Retry-After: {retries.advised} advised, {retries.retried} tried again,"
            f" {retries.obeyed} no sooner than told, {retries.admitted} then complete"
        )
    if len(result.tenants) > 1 and result.fairness_jain is not None:
        console.print(f"fairness between {len(result.tenants)} tenants (Jain): {result.fairness_jain:.3f}")
    for line in reconciliation_lines(result):
        console.print(line)
    if result.verification is not None:
        found = result.verification
        console.print(f"repeated alone: {found.equal} of {found.checked} the same text, {found.failed} failed")
    for reason in result.validity.reasons[1:]:  # the verdict gives the first
        console.print(f"invalid: {reason}", markup=False)
    console.print(Text(result.verdict, style="bold"))


def reconciliation_lines(result: RunResult) -> list[str]:
    """One line per quantity that both sides count."""
    if not result.reconciliation:
        return ["server counters: none offered"]
    lines = []
    for row in result.reconciliation:
        client = f"{row.client_low:.0f}"
        if row.client_high is None:
            client += " or more"
        elif row.client_high > row.client_low:
            client += f" to {row.client_high:.0f}"
        if row.server is None:
            lines.append(f"server counters: no {row.what}; client counts {client}")
        elif row.agrees:
            lines.append(f"server counters: {row.what} agree ({row.server:.0f})")
        else:
            lines.append(f"server counters: {row.what} DIFFER: client {client}, server {row.server:.0f}")
    return lines


def _latency_table(result: RunResult) -> Table:
    table = Table(title=f"{result.name}: latency of complete requests (95 % interval)", title_justify="left")
    for column in ("", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(column, justify="left" if not column else "right")
    for name, label in LATENCY_LABELS.items():
        row = getattr(result.latency, name)
        table.add_row(
            label, *(_cell(getattr(row, level)) for level in ("p50", "p90", "p99", "p99_9")), duration(row.max)
        )
    return table


def _cell(quantile: Quantile | None) -> str:
    if quantile is None:
        return "-"
    scale = 1.0 if quantile.value >= 1 else 1e3  # the interval in the unit of the value
    return f"{duration(quantile)}\n{quantile.low * scale:.3g} to {quantile.high * scale:.3g}"


def step_line(step: Step) -> str:
    """One rate of a sweep."""
    word = "holds" if step.is_held else "breaks"
    proof = "proven" if step.is_proven else "not proven"
    if step.share is None:
        return f"{step.rate_rps:8.3g} req/s  {word}  (cut short: it could not hold any more)"
    return (
        f"{step.rate_rps:8.3g} req/s  {word}  {step.share:.1%} good of {step.num_requests}"
        f" ({step.share_low:.1%} to {step.share_high:.1%}, {proof})"
    )


def show_comparison(rows: Sequence[Ratio], caveats: Sequence[str], console: Console) -> None:
    table = Table(title="B / A (95 % interval)", title_justify="left")
    for column in ("measure", "A", "B", "B / A", "interval", ""):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in rows:
        interval = "-" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
        word = {True: "differs", False: "same within error", None: ""}[row.is_real]
        table.add_row(row.measure, f"{row.a:.4g}", f"{row.b:.4g}", f"{row.ratio:.3f}", interval, word)
    console.print(table)
    for caveat in caveats:
        console.print(f"caution: {caveat}", markup=False)
