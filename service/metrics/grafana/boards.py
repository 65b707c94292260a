"""The four dashboards: what users get, how many replicas there are and why, what engines do, what it costs."""

from __future__ import annotations

from service.metrics import catalog
from service.metrics.catalog import Metric
from service.metrics.grafana.panels import Dashboard, Form, Panel, Query, Row, Unit
from service.metrics.grafana.query import (
    buckets,
    increase,
    largest,
    mean,
    observed,
    quantile,
    rate,
    summed,
    total,
)

OBJECTIVE = 0.99  # as in deploy/prometheus/rules.yaml
GENERATION = "~/v1/.+"
SECONDS_PER_HOUR = 3600
MILLION = 1_000_000

_READY = total(catalog.REPLICAS, state="ready")
_REQUESTS_IN_RANGE = f"({increase(catalog.SLO_REQUESTS)} + {increase(catalog.REJECTIONS)})"
_PRICE = largest(catalog.PRICE)
_SPENT = f"{increase(catalog.REPLICA_SECONDS)} / {SECONDS_PER_HOUR} * {_PRICE}"
_SPENT_PER_S = f"{rate(catalog.REPLICA_SECONDS)} / {SECONDS_PER_HOUR} * {_PRICE}"
_SAVED = f"{increase(catalog.SAVED_REPLICA_SECONDS)} / {SECONDS_PER_HOUR} * {_PRICE}"


def dashboards() -> tuple[Dashboard, ...]:
    return service(), fleet(), engine(), cost()


def service() -> Dashboard:
    return Dashboard(
        "service",
        "service",
        "What users get.",
        (
            Row("At a glance", _service_figures()),
            Row("Time", _times()),
            Row("Requests", _requests()),
        ),
    )


def fleet() -> Dashboard:
    return Dashboard(
        "fleet",
        "fleet and scaling",
        "How many replicas there are, how many there should be, and why. `headcount explain` says it in words.",
        (
            Row("At a glance", _fleet_figures()),
            Row("Replicas", _replicas()),
            Row("The autoscaler", _autoscaler()),
        ),
    )


def engine() -> Dashboard:
    return Dashboard(
        "engine",
        "engine",
        "What the replicas compute.",
        (
            Row("Load", _load()),
            Row("Steps", _steps()),
            Row("Speculation", _speculation()),
            Row("Requests", _lengths()),
            Row("What runs", _versions()),
        ),
    )


def cost() -> Dashboard:
    return Dashboard(
        "cost",
        "cost",
        "What the fleet costs, in the currency of price_per_replica_hour.",
        (Row("In the time shown", _cost_figures()), Row("Over time", _cost_lines())),
    )


def _figure(title: str, text: str, expression: str, unit: Unit = Unit.NUMBER, good_from: float | None = None) -> Panel:
    return Panel(title=title, help=text, queries=(Query(expression),), unit=unit, form=Form.FIGURE, good_from=good_from)


def _line(title: str, text: str, expression: str, legend: str, unit: Unit = Unit.NUMBER) -> Panel:
    return Panel(title=title, help=text, queries=(Query(expression, legend),), unit=unit)


def _spread(title: str, metric: Metric, unit: Unit = Unit.SECONDS) -> Panel:
    """A distribution over time."""
    queries = tuple(Query(quantile(q, metric), f"{q:.0%}") for q in (0.5, 0.95, 0.99))
    return Panel(title=title, help=metric.help, queries=(*queries, Query(mean(metric), "mean")), unit=unit)


def _service_figures() -> tuple[Panel, ...]:
    served = f"{increase(catalog.SLO_REQUESTS, met='true')} / {_REQUESTS_IN_RANGE}"
    return (
        _figure("Served well", "Within the targets of TTFT and TPOT, of all.", served, Unit.RATIO, OBJECTIVE),
        _figure("Requests", "To generate.", rate(catalog.HTTP_REQUESTS, handler=GENERATION), Unit.REQUESTS_PER_SECOND),
        _figure("Tokens", "Generated.", rate(catalog.GENERATION_TOKENS), Unit.PER_SECOND),
        _figure("TTFT, 95 %", catalog.TTFT.help, quantile(0.95, catalog.TTFT), Unit.SECONDS),
        _figure("TPOT, 95 %", catalog.TPOT.help, quantile(0.95, catalog.TPOT), Unit.SECONDS),
        _figure("Replicas", "Ready.", _READY),
    )


def _times() -> tuple[Panel, ...]:
    return (
        _spread("TTFT", catalog.TTFT),
        _spread("TPOT", catalog.TPOT),
        _spread("ITL", catalog.ITL),
        _spread("E2E", catalog.E2E_TIME),
        _spread("Time to the last byte", catalog.HTTP_DURATION_HIGHR),
        Panel(
            title="TTFT, all of it",
            help=catalog.TTFT.help,
            queries=(Query(buckets(catalog.TTFT)),),
            form=Form.HEATMAP,
        ),
    )


def _requests() -> tuple[Panel, ...]:
    http = rate(catalog.HTTP_REQUESTS, "handler", "status", handler=GENERATION)
    by_route = mean(catalog.HTTP_DURATION, "handler", handler=GENERATION)
    ends = Query(rate(catalog.FINISHED, "finished_reason"), "{{finished_reason}}")
    slo = Query(rate(catalog.SLO_REQUESTS, "met"), "served well: {{met}}")
    refused = Query(rate(catalog.REJECTIONS, "reason"), "refused: {{reason}}")
    errors = rate(catalog.HTTP_ERRORS, "handler", "code")
    read = Query(summed(catalog.HTTP_REQUEST_SIZE), "requests")
    written = Query(summed(catalog.HTTP_RESPONSE_SIZE), "responses")
    per_second = Unit.REQUESTS_PER_SECOND
    return (
        _line("Requests", catalog.HTTP_REQUESTS.help, http, "{{handler}} {{status}}", per_second),
        Panel(title="Objective", help=catalog.SLO_REQUESTS.help, queries=(slo, refused), unit=per_second),
        Panel(title="How they end", help=catalog.FINISHED.help, queries=(ends,), unit=per_second, is_stacked=True),
        _line("Errors", catalog.HTTP_ERRORS.help, errors, "{{handler}} {{code}}", per_second),
        _line("Mean time by route", catalog.HTTP_DURATION.help, by_route, "{{handler}}", Unit.SECONDS),
        Panel(title="Bytes", help="Bodies.", queries=(read, written), unit=Unit.BYTES_PER_SECOND),
    )


def _fleet_figures() -> tuple[Panel, ...]:
    return (
        _figure("Ready", "Replicas that serve.", _READY),
        _figure("Desired", catalog.DESIRED_REPLICAS.help, total(catalog.DESIRED_REPLICAS)),
        _figure("Need", catalog.NEED_REPLICAS.help, total(catalog.NEED_REPLICAS)),
        _figure("Queue", catalog.QUEUE_TIME_OF_FLEET.help, largest(catalog.QUEUE_TIME_OF_FLEET), Unit.SECONDS),
        _figure("Cold start", catalog.COLD_START.help, largest(catalog.COLD_START), Unit.SECONDS),
        _figure("Last decision", catalog.DECISION_AGE.help, largest(catalog.DECISION_AGE), Unit.SECONDS),
    )


def _replicas() -> tuple[Panel, ...]:
    bounds = Query(total(catalog.MIN_REPLICAS), "min"), Query(total(catalog.MAX_REPLICAS), "max")
    desired = Query(total(catalog.DESIRED_REPLICAS), "desired")
    need, work = Query(total(catalog.NEED_REPLICAS), "need"), Query(total(catalog.WORK_REPLICAS), "work")
    lost, silent = Query(total(catalog.LOST_REPLICAS), "lost"), Query(total(catalog.UNKNOWN_REPLICAS), "silent")
    states = Query(total(catalog.REPLICAS, "state"), "{{state}}")
    return (
        Panel(title="Replicas", help=catalog.REPLICAS.help, queries=(states,), is_stacked=True),
        Panel(title="Bounds", help="What was asked for, and what may be.", queries=(desired, *bounds)),
        Panel(
            title="Demand", help="Work now; need adds its bursts and its growth.", queries=(work, need, states, desired)
        ),
        Panel(title="In trouble", help="Replicas that do not get ready, or do not report.", queries=(lost, silent)),
        _line("Queue", catalog.QUEUE_TIME_OF_FLEET.help, largest(catalog.QUEUE_TIME_OF_FLEET), "queue", Unit.SECONDS),
        _line("Held", catalog.HELD_REQUESTS.help, total(catalog.HELD_REQUESTS), "held"),
    )


def _autoscaler() -> tuple[Panel, ...]:
    changes = increase(catalog.SCALE_EVENTS, "direction", over="10m")
    decisions, age = rate(catalog.DECISIONS, "source"), largest(catalog.DECISION_AGE)
    return (
        _line("Changes in ten minutes", catalog.SCALE_EVENTS.help, changes, "{{direction}}"),
        _line("Forecast error", catalog.FORECAST_ERROR.help, total(catalog.FORECAST_ERROR), "need - forecast"),
        _line("Cold start", catalog.COLD_START.help, largest(catalog.COLD_START), "cold start", Unit.SECONDS),
        _line("Decisions", catalog.DECISIONS.help, decisions, "{{source}}", Unit.PER_SECOND),
        _line("Age of the last decision", catalog.DECISION_AGE.help, age, "age", Unit.SECONDS),
    )


def _load() -> tuple[Panel, ...]:
    running, waiting = Query(total(catalog.NUM_RUNNING), "running"), Query(total(catalog.NUM_WAITING), "waiting")
    hits = f"{rate(catalog.PREFIX_HITS)} / {rate(catalog.PREFIX_QUERIES)}"
    cached = f"{rate(catalog.PROMPT_TOKENS_CACHED)} / {rate(catalog.PROMPT_TOKENS)}"
    shares = Query(hits, "of tokens looked up"), Query(cached, "of prompt tokens")
    sources = Query(rate(catalog.PROMPT_TOKENS_BY_SOURCE, "source"), "prompt: {{source}}")
    generated = Query(rate(catalog.GENERATION_TOKENS), "generated")
    usage, preemptions = largest(catalog.KV_USAGE, "instance"), rate(catalog.PREEMPTIONS)
    return (
        Panel(title="Sequences", help="Running and waiting.", queries=(running, waiting), is_stacked=True),
        Panel(title="Tokens", help=catalog.GENERATION_TOKENS.help, queries=(sources, generated), unit=Unit.PER_SECOND),
        _line("KV cache", catalog.KV_USAGE.help, usage, "{{instance}}", Unit.RATIO),
        Panel(title="Prefix hits", help=catalog.PREFIX_HITS.help, queries=shares, unit=Unit.RATIO),
        _line("Preemptions", catalog.PREEMPTIONS.help, preemptions, "preemptions", Unit.PER_SECOND),
        _spread("Queue time", catalog.QUEUE_TIME),
    )


def _steps() -> tuple[Panel, ...]:
    steps = observed(catalog.STEP_TIME, "instance")
    return (
        _spread("Step duration", catalog.STEP_TIME),
        _line("Steps", catalog.STEP_TIME.help, steps, "{{instance}}", Unit.PER_SECOND),
        _spread("Tokens in a step", catalog.STEP_TOKENS, Unit.NUMBER),
        _spread("Prefill time", catalog.PREFILL_TIME),
        _spread("Decode time", catalog.DECODE_TIME),
        _spread("Inference time", catalog.INFERENCE_TIME),
    )


def _speculation() -> tuple[Panel, ...]:
    accepted = rate(catalog.ACCEPTED_TOKENS)
    drafts, tokens = Query(rate(catalog.DRAFTS), "drafts"), Query(rate(catalog.DRAFT_TOKENS), "tokens guessed")
    share = f"{accepted} / {rate(catalog.DRAFT_TOKENS)}"
    per_draft = f"1 + {accepted} / {rate(catalog.DRAFTS)}"
    positions = rate(catalog.ACCEPTED_TOKENS_BY_POSITION, "position")
    return (
        Panel(title="Drafts", help=catalog.DRAFTS.help, queries=(drafts, tokens), unit=Unit.PER_SECOND),
        _line("Accepted", catalog.ACCEPTED_TOKENS.help, share, "of the tokens", Unit.RATIO),
        _line("Tokens of a step with a draft", "Those that were right, and one more.", per_draft, "mean"),
        _line("Accepted by position", catalog.ACCEPTED_TOKENS_BY_POSITION.help, positions, "{{position}}"),
    )


def _lengths() -> tuple[Panel, ...]:
    metrics = {
        "Prompt length": catalog.PROMPT_LENGTH,
        "Output length": catalog.OUTPUT_LENGTH,
        "Prompt tokens computed": catalog.COMPUTED_LENGTH,
        "max_tokens": catalog.MAX_TOKENS,
        "Longest choice": catalog.LONGEST_CHOICE,
        "Choices": catalog.NUM_CHOICES,
    }
    return tuple(_spread(title, metric, Unit.NUMBER) for title, metric in metrics.items())


def _versions() -> tuple[Panel, ...]:
    cache = Query(largest(catalog.CACHE_CONFIG, *catalog.CACHE_CONFIG.labels, "instance"))
    versions = Query(largest(catalog.BUILD, "version", "instance"))
    return (
        Panel(title="KV cache", help=catalog.CACHE_CONFIG.help, queries=(cache,), form=Form.TABLE),
        Panel(title="Version", help=catalog.BUILD.help, queries=(versions,), form=Form.TABLE),
    )


def _cost_figures() -> tuple[Panel, ...]:
    seconds, saved_s = increase(catalog.REPLICA_SECONDS), increase(catalog.SAVED_REPLICA_SECONDS)
    per_million = f"{_SPENT} / ({increase(catalog.GENERATION_TOKENS)} / {MILLION})"
    per_thousand = f"{_SPENT} / ({increase(catalog.SLO_REQUESTS, met='true')} / 1000)"
    share = f"{saved_s} / ({seconds} + {saved_s})"
    return (
        _figure("Spent", "Replica-hours at their price.", _SPENT),
        _figure("Saved", "Against a fleet that is always as large as this one at its largest.", _SAVED),
        _figure("Saved of that", "The share of such a fleet's cost.", share, Unit.RATIO),
        _figure("Per million tokens", "Spent, for a million generated tokens.", per_million),
        _figure("Per thousand requests", "Spent, for a thousand requests that were served well.", per_thousand),
        _figure("Per hour, now", catalog.COST_PER_HOUR.help, total(catalog.COST_PER_HOUR)),
    )


def _cost_lines() -> tuple[Panel, ...]:
    used = f"{total(catalog.WORK_REPLICAS)} / {total(catalog.REPLICAS)}"
    per_million = f"{_SPENT_PER_S} / ({rate(catalog.GENERATION_TOKENS)} / {MILLION})"
    per_thousand = f"{_SPENT_PER_S} / ({rate(catalog.SLO_REQUESTS, met='true')} / 1000)"
    rent = Query(total(catalog.COST_PER_HOUR), "this fleet")
    static = Query(f"({rate(catalog.REPLICA_SECONDS)} + {rate(catalog.SAVED_REPLICA_SECONDS)}) * {_PRICE}", "static")
    return (
        Panel(title="Per hour", help="Beside a static fleet of the largest size.", queries=(rent, static)),
        _line("Used", "Work, in replicas, of those that are paid for.", used, "used", Unit.RATIO),
        _line("Per million tokens", "Generated tokens.", per_million, "cost"),
        _line("Per thousand requests", "Requests that were served well.", per_thousand, "cost"),
    )
