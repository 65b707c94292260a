"""A whole result without a server: records made from a seed, assembled as a real run's are."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from loadtest.assemble import Evidence, assemble
from loadtest.histogram import GapHistogram
from loadtest.prompts import Vocabulary
from loadtest.records import Outcome, Record
from loadtest.results import Difference, RunResult, Verification
from loadtest.scenario import parse_scenario
from loadtest.schedule import PlannedRequest, make_schedule
from loadtest.scrape import Snapshot
from loadtest.spec import Scenario
from loadtest.target import Target
from loadtest.workers import Harvest

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def scenario(seed: int = 0) -> Scenario:
    """Two tenants, an SLO, a reason with characters that HTML must escape."""
    return parse_scenario(
        {
            "name": "fabricated",
            "reason": "to see <everything> & more",
            "seed": seed,
            "arrivals": {"kind": "poisson", "rate_rps": 20, "duration_s": 60},
            "workload": {"tenants": [{"name": "a", "api_key": "top-secret"}, {"name": "b"}], "prompt_tokens": 40},
            "slo": {"ttft_s": 0.6},
            "verify_share": 0.1,
        }
    )


@functools.cache
def fabricate(seed: int = 0) -> RunResult:
    """The result of a minute at 20 requests/s: TTFT 0.2 to 0.7 s, 2 % cut streams, 1 % refused."""
    return assemble(evidence(seed))


def evidence(seed: int = 0) -> Evidence:
    """What `fabricate` is assembled from."""
    plan = scenario(seed)
    schedule = make_schedule(plan)
    rng = np.random.default_rng(seed)
    records = [_record(request, rng) for request in schedule.requests]
    gaps = GapHistogram(len(records))
    for record in records:
        gaps.add(record.index, float(rng.uniform(0.01, 0.03)))
    return Evidence(
        scenario=plan,
        target=Target("http://127.0.0.1:1", "scripted-model", "scripted", Vocabulary()),
        schedule=schedule,
        started=STARTED,
        harvest=Harvest(
            records=records,
            verifiable_paths=[Path()],
            gaps=gaps.counts,
            cpu_ratios=[(0.2, 0.3), (0.1, 0.2)],
            peak_memory_bytes=80_000_000,
        ),
        snapshots=[Snapshot(at_s=float(at), running=5, waiting=1, replicas=1 + at // 20) for at in range(60)],
        before=Snapshot(at_s=0, requests=0, prompt_tokens=0, output_tokens=0),
        after=Snapshot(at_s=61, requests=5, prompt_tokens=7, output_tokens=9),
        verification=Verification(
            checked=3, equal=2, failed=0, differences=[Difference(index=4, under_load="<b>x", alone="y")]
        ),
        decisions=[
            {
                "at": STARTED.timestamp() + 20,
                "desired_replicas": 2,
                "reason": "work arrives faster than 1 replica can do",
            },
            {"at": STARTED.isoformat(), "desired_replicas": 1, "reason": "start"},
            {"at": STARTED.timestamp() - 99, "desired_replicas": 9, "reason": "before the run"},
            {"note": "no time"},
        ],
        machine="Linux x86_64, 2 cores",
        command="headcount-loadtest run fabricated",
    )


def _record(request: PlannedRequest, rng: np.random.Generator) -> Record:
    due = request.at_s or 0.0
    draw = rng.random()
    outcome = Outcome.CUT if draw < 0.02 else Outcome.HTTP if draw < 0.03 else Outcome.OK
    ttft = float(rng.uniform(0.2, 0.7))
    is_ok = outcome is Outcome.OK
    return Record(
        index=request.index,
        tenant="ab"[request.tenant],
        conversation=request.conversation,
        turn=0,
        intended_s=due,
        sent_s=due + 0.002,
        first_s=due + ttft if is_ok else None,
        last_s=due + ttft + 0.6 if is_ok else None,
        end_s=due + ttft + 0.6,
        outcome=outcome,
        status=429 if outcome is Outcome.HTTP else 200,
        message=None if is_ok else "<script>alert(1)</script>",
        planned_prompt_tokens=request.prompt_tokens,
        planned_output_tokens=request.output_tokens,
        prompt_tokens=request.prompt_tokens if is_ok else None,
        output_tokens=request.output_tokens if is_ok else None,
        num_events=request.output_tokens if is_ok else 3,
        attempts=1,
        retry_after_s=1.0 if outcome is Outcome.HTTP else None,
    )
