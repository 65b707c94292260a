"""What a run found: one JSON document, complete enough to draw the report from and to compare with another run.

Its schema is these models; `schema_table` renders it for docs/loadtest.md, where a test holds it. Seconds, tokens,
and ratios 0-1 throughout; null means not known, never zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadtest.errors import ScenarioError

SCHEMA_VERSION = 1


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantile(Part):
    value: float = Field(description="the quantile itself")
    low: float = Field(description="lower end of its 95 % interval (bootstrap)")
    high: float = Field(description="upper end of its 95 % interval (bootstrap)")


class Latency(Part):
    """A distribution; a quantile is null when fewer than one request is expected beyond it."""

    count: int = Field(description="values behind it")
    mean: float | None = Field(description="arithmetic mean")
    max: float | None = Field(description="largest value")
    p50: Quantile | None = Field(description="median")
    p90: Quantile | None = Field(description="90 % are at or below it")
    p99: Quantile | None = Field(description="99 % are at or below it")
    p99_9: Quantile | None = Field(description="99.9 % are at or below it")


class Latencies(Part):
    """Of complete requests only: read them beside the share of failures. Formulas: docs/metrics.md, Client side."""

    ttft_s: Latency = Field(description="time to first token, from the intended send time (headline)")
    ttft_from_send_s: Latency = Field(description="the same from the actual send time")
    itl_s: Latency = Field(description="gaps between events with output")
    tpot_s: Latency = Field(description="time per output token after the first, per request")
    e2e_s: Latency = Field(description="last byte, from the intended send time (headline)")
    e2e_from_send_s: Latency = Field(description="the same from the actual send time")
    lateness_s: Latency = Field(description="the tester's own delay (sent - intended) of everything sent")


class TargetInfo(Part):
    url: str = Field(description="base URL")
    model: str = Field(description="model asked for")
    api: str = Field(description="chat or completions")
    server: str | None = Field(description="the server's own name (Server header)")


class ScheduleInfo(Part):
    sha256: str = Field(description="hash of the planned requests: equal hash, equal load")
    loop: Literal["open", "closed"] = Field(description="closed: latencies hide queueing (coordinated omission)")
    seed: int = Field(description="seed of every random stream")
    num_requests: int = Field(description="planned requests")
    duration_s: float = Field(description="due time of the last conversation's start; 0 in a closed loop")
    gap_cv: float | None = Field(description="coefficient of variation of the gaps between conversation starts")
    num_workers: int = Field(description="worker processes it was dealt out to")


class Counts(Part):
    """Requests by fate, warm-up left out."""

    planned: int = Field(description="due in the measured part")
    sent: int = Field(description="went out")
    ok: int = Field(description="complete")
    failed: int = Field(description="refused, broken, too late or dropped: see errors")
    disconnected: int = Field(description="left early, as planned")
    skipped: int = Field(description="not sent because the conversation's previous turn failed")
    unfinished: int = Field(description="in flight or not yet due when the run was stopped")


class Rates(Part):
    asked_rps: float | None = Field(description="requests due per second of schedule; null in a closed loop")
    sent_rps: float = Field(description="requests sent per second")
    ok_rps: float = Field(description="complete requests per second, until the last answer")
    prompt_tokens_per_s: float | None = Field(description="prompt tokens of complete requests per second")
    output_tokens_per_s: float | None = Field(description="output tokens of complete requests per second")
    tokens_per_event: float | None = Field(description="1 when each event held one token, so that ITL is per token")


class Goodput(Part):
    slo: dict[str, float] = Field(description="the limits (seconds) and the share of requests that must meet them")
    met: int = Field(description="complete requests within every limit")
    of: int = Field(description="requests that count: all but planned disconnects and unfinished ones")
    share: float | None = Field(description="met / of")
    share_low: float | None = Field(description="lower end of its 95 % interval (Wilson, corrected for dependence)")
    share_high: float | None = Field(description="upper end of its 95 % interval")
    goodput_rps: float = Field(description="good requests per second")
    is_held: bool = Field(description="share is at least what the SLO asks")


class ErrorGroup(Part):
    outcome: str = Field(description="deadline, connect, http, cut, malformed, error_event or dropped")
    status: int | None = Field(description="HTTP status, where there was one")
    code: str | None = Field(description="the error envelope's code")
    count: int = Field(description="requests")
    example: str | None = Field(description="one message, shortened")


class TenantResult(Part):
    name: str = Field(description="as in the scenario")
    sent: int = Field(description="requests sent")
    ok: int = Field(description="complete requests")
    service_ratio: float | None = Field(description="good / counted requests (complete / counted without an SLO)")
    ttft_p50_s: float | None = Field(description="median TTFT from the intended send time")
    ttft_p99_s: float | None = Field(description="99th percentile of it")
    output_tokens: int = Field(description="output tokens received")


class Retries(Part):
    advised: int = Field(description="requests refused with a Retry-After at least once")
    advice_p50_s: float | None = Field(description="median of the last advice")
    retried: int = Field(description="requests tried again")
    obeyed: int = Field(description="of these, the last attempt waited at least as long as told")
    admitted: int = Field(description="of these, complete in the end: the advice was good")


class QueueTime(Part):
    """The server's own histogram of waiting time, over this run."""

    count: int = Field(description="requests it saw start")
    mean_s: float = Field(description="mean time in its queue")
    p50_s: float | None = Field(description="median, interpolated within its bucket; null beyond the last bucket")
    p99_s: float | None = Field(description="99th percentile, likewise")


class Reconciled(Part):
    what: str = Field(description="requests, prompt_tokens or output_tokens")
    client_low: float = Field(description="at least this many by the client's count")
    client_high: float | None = Field(
        description="at most this many (a broken-off request may have cost more); null: no bound"
    )
    server: float | None = Field(description="increase of the server's counter over the run; null when it has none")
    agrees: bool | None = Field(description="the server's count is in between")


class Difference(Part):
    index: int = Field(description="request")
    under_load: str = Field(description="text around the first difference, under load")
    alone: str = Field(description="the same place, when repeated alone")


class Verification(Part):
    checked: int = Field(description="answers repeated alone after the run")
    equal: int = Field(description="of these, same text")
    failed: int = Field(description="of these, the repetition itself failed")
    differences: list[Difference] = Field(description="the first few that were not")


class Validity(Part):
    is_valid: bool = Field(description="the numbers are the server's, not the tester's")
    is_partial: bool = Field(description="the run was stopped early: the report covers what there is")
    reasons: list[str] = Field(description="why not, one sentence each")
    lateness_limit_s: float = Field(description="largest p99 of lateness that is accepted")


class Tester(Part):
    cpu_ratio_p95: list[float | None] = Field(description="per worker: 95th percentile of its share of one core")
    peak_memory_bytes: int = Field(description="of the largest worker")
    prompt_lengths_exact: bool = Field(description="prompt lengths were calibrated with the server's /tokenize")
    machine: str = Field(description="where the tester ran")
    command: str = Field(description="the command line")


class Interval(Part):
    """One stretch of the run, for the plots."""

    at_s: float = Field(description="its start")
    due: int = Field(description="requests due in it")
    sent: int = Field(description="requests sent in it")
    ok: int = Field(description="complete requests that ended in it")
    failed: int = Field(description="failed requests that ended in it")
    in_flight: int = Field(description="requests in flight at its end")
    ttft_p50_s: float | None = Field(description="median TTFT of requests due in it")
    ttft_p99_s: float | None = Field(description="99th percentile of the same")
    tpot_p50_s: float | None = Field(description="median TPOT of the same")
    running: float | None = Field(description="requests running, by the server's gauge")
    waiting: float | None = Field(description="requests waiting, by the server's gauge")
    replicas: float | None = Field(description="replicas, by the server's gauge")


class Decision(Part):
    at_s: float = Field(description="seconds after the start of the run")
    replicas: float | None = Field(description="replicas decided on")
    reason: str = Field(description="the server's words")


class RunResult(Part):
    schema_version: int = SCHEMA_VERSION
    name: str = Field(description="scenario")
    reason: str = Field(description="why the scenario exists")
    started_at: str = Field(description="UTC, ISO 8601")
    verdict: str = Field(description="one line")
    target: TargetInfo
    scenario: dict[str, Any] = Field(description="the whole scenario as run, keys masked")
    schedule: ScheduleInfo
    validity: Validity
    counts: Counts
    rates: Rates
    latency: Latencies
    goodput: Goodput | None = Field(description="null when no SLO was given")
    errors: list[ErrorGroup]
    tenants: list[TenantResult]
    fairness_jain: float | None = Field(description="Jain's index over the tenants' service ratios: 1 is fair")
    retries: Retries
    queue_time: QueueTime | None = Field(description="null when the server has no such histogram")
    reconciliation: list[Reconciled] = Field(description="empty when the server has no metrics")
    verification: Verification | None = Field(description="null when none was asked for")
    tester: Tester
    intervals: list[Interval]
    cdf: dict[str, list[tuple[float, float]]] = Field(description="per measure: (seconds, share at or below)")
    scatter: list[tuple[float, float]] = Field(description="a sample of (prompt tokens, TTFT in seconds)")
    decisions: list[Decision] = Field(description="scaling decisions, where the server offers them")


def load_result(path: Path) -> RunResult:
    """Raises ScenarioError when the file is not a result of this schema version."""
    try:
        return RunResult.model_validate_json(path.read_text())
    except OSError as error:
        raise ScenarioError(f"The result {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        raise ScenarioError(
            f"{path} is not a result of schema version {SCHEMA_VERSION}: {error.errors()[0]['msg']}."
        ) from error


def schema_table(model: type[BaseModel] = RunResult, prefix: str = "") -> list[str]:
    """Markdown table rows `| path | meaning |`, parts in place; `[]` marks a list."""
    rows: list[str] = []
    for name, field in model.model_fields.items():
        parts = [arg for arg in (field.annotation, *get_args(field.annotation)) if isinstance(arg, type)]
        part = next((arg for arg in parts if issubclass(arg, Part)), None)
        is_list = "list[" in str(field.annotation)
        path = f"{prefix}{name}{'[]' if is_list else ''}"
        if field.description or part is None:
            rows.append(f"| `{path}` | {field.description or 'version of this schema'} |")
        if part is not None and part is not Quantile:
            rows += schema_table(part, f"{path}.")
    return rows
