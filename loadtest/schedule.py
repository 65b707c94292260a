"""The list of requests a run will send: pure, seeded, complete before the first byte goes out, the same for any
number of workers. Each aspect (arrivals, lengths, tenants, …) draws from its own random stream, so that changing one
leaves the others as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import arrival_times
from loadtest.errors import ScenarioError
from loadtest.kinds import Choice, Closed, Constant, Distribution, LogNormal, Trace, Uniform
from loadtest.spec import Scenario
from loadtest.traces import MOONCAKE_BLOCK_TOKENS, TraceRequest, play_trace


@dataclass(frozen=True, slots=True)
class Segment:
    """`tokens` tokens of text that is the same wherever the same `key` appears, in this run and in others of its
    seed."""

    key: str
    tokens: int


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send.

    `at_s` is when it is due, in seconds after the start; None means right after the conversation's previous answer
    plus `think_s` (later turns), or as soon as a client is free (closed loop). The user's turn is `segments`, or
    turn `turn` of entry `file_prompt` of the prompts file.
    """

    index: int
    at_s: float | None
    conversation: int
    turn: int
    tenant: int
    segments: tuple[Segment, ...]
    file_prompt: int | None
    output_tokens: int
    think_s: float
    disconnect_after_s: float | None
    deadline_s: float | None
    is_verified: bool

    @property
    def prompt_tokens(self) -> int | None:
        """Planned tokens of this turn's own text; None when it comes from a file."""
        return None if self.file_prompt is not None else sum(segment.tokens for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Schedule:
    """`requests` in order of conversation start, a conversation's turns together. `sha256` covers every field of
    them and the file prompts they use."""

    requests: tuple[PlannedRequest, ...]
    sha256: str

    def starts_s(self) -> list[float]:
        """Due times of the conversations' first requests; empty in a closed loop."""
        return [request.at_s for request in self.requests if request.at_s is not None]


FilePrompt = tuple[str, ...]  # the user's turns


def make_schedule(scenario: Scenario, file_prompts: Sequence[FilePrompt] = ()) -> Schedule:
    """Plan every request. Raises ScenarioError when it would exceed the scenario's limits or would be empty."""
    starts = _starts(scenario)
    _check_limits(scenario, starts)
    requests = tuple(_plan(scenario, starts, file_prompts))
    _check_count(scenario, len(requests))
    digest = hashlib.sha256()
    for request in requests:
        digest.update(repr(request).encode())
    for turns in file_prompts:
        digest.update(repr(turns).encode())
    return Schedule(requests, digest.hexdigest())


def conversations(
    requests: Sequence[PlannedRequest], worker: int = 0, num_workers: int = 1
) -> Iterator[tuple[PlannedRequest, ...]]:
    """The conversations that this worker sends: dealt out like cards, so that each worker sees the same shape of
    load."""
    for conversation, turns in groupby(requests, key=lambda request: request.conversation):
        if conversation % num_workers == worker:
            yield tuple(turns)


def share_of(total: int, worker: int, num_workers: int) -> int:
    """This worker's part of `total` clients: the first workers have one more where it does not divide."""
    return (total + num_workers - 1 - worker) // num_workers


def stream(seed: int, name: str) -> np.random.Generator:
    """The random stream of one aspect."""
    return np.random.default_rng([seed, *name.encode()])


def sample(distribution: Distribution, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`count` draws."""
    match distribution:
        case Constant():
            return np.full(count, distribution.value)
        case Uniform():
            return rng.uniform(distribution.low, distribution.high, count)
        case LogNormal():
            draws = distribution.median * np.exp(distribution.sigma * rng.standard_normal(count))
            return np.clip(draws, distribution.low, distribution.high)
        case Choice():
            weights = distribution.weights or (1.0,) * len(distribution.values)
            return rng.choice(distribution.values, count, p=np.array(weights) / sum(weights))


def _starts(scenario: Scenario) -> list[TraceRequest]:
    """When conversations begin, and what a trace says about their lengths."""
    spec = scenario.arrivals
    rng = stream(scenario.seed, "arrivals")
    if isinstance(spec, Trace):
        return play_trace(spec, rng)
    if isinstance(spec, Closed):
        return [TraceRequest(0.0)] * spec.num_requests
    return [TraceRequest(float(at_s)) for at_s in arrival_times(spec, rng)]


def _check_limits(scenario: Scenario, starts: list[TraceRequest]) -> None:
    if not starts:
        raise ScenarioError("The scenario sends no request: raise its rate or its duration.")
    if starts[-1].at_s > scenario.limits.max_duration_s:
        raise ScenarioError(
            f"The scenario takes {starts[-1].at_s:.0f} s: shorten it, or raise limits.max_duration_s"
            f" ({scenario.limits.max_duration_s:g} s)."
        )
    _check_count(scenario, len(starts))


def _check_count(scenario: Scenario, count: int) -> None:
    if count > scenario.limits.max_requests:
        raise ScenarioError(
            f"The scenario has {count:,} requests: shorten it, or raise limits.max_requests"
            f" ({scenario.limits.max_requests:,})."
        )


def _plan(scenario: Scenario, starts: list[TraceRequest], files: Sequence[FilePrompt]) -> Iterator[PlannedRequest]:
    work, seed = scenario.workload, scenario.seed
    weights = np.array([tenant.weight for tenant in work.tenants])
    tenants = stream(seed, "tenants").choice(len(weights), len(starts), p=weights / weights.sum())
    picks = stream(seed, "files").integers(len(files), size=len(starts)) if files else None
    turns = sample(work.conversation.turns, len(starts), stream(seed, "turns")) if work.conversation else None
    prefix_rng, draws = stream(seed, "prefix"), _TurnDraws(scenario)
    index = 0
    for number, start in enumerate(starts):
        tenant = int(tenants[number])
        file_prompt = None if picks is None else int(picks[number])
        num_turns = 1 if turns is None else max(1, round(turns[number]))
        if file_prompt is not None:
            num_turns = min(num_turns, len(files[file_prompt]))
        prefix = _prefix(scenario, start, prefix_rng)
        for turn in range(num_turns):
            is_due = turn == 0 and scenario.is_open_loop
            yield PlannedRequest(
                index=index,
                at_s=start.at_s if is_due else None,
                conversation=number,
                turn=turn,
                tenant=tenant,
                segments=()
                if file_prompt is not None
                else draws.segments(index, tenant, start, prefix if turn == 0 else ()),
                file_prompt=file_prompt,
                output_tokens=start.output_tokens or draws.output_tokens(tenant),
                think_s=draws.think_s() if turn > 0 else 0.0,
                disconnect_after_s=draws.disconnect_after_s(),
                deadline_s=draws.deadline_s(),
                is_verified=draws.is_verified(),
            )
            index += 1


def _prefix(scenario: Scenario, start: TraceRequest, rng: np.random.Generator) -> tuple[Segment, ...]:
    """What the conversation's first turn shares with others: the trace's prefix blocks, or one of the workload's
    texts."""
    if start.prefix_blocks and isinstance(scenario.arrivals, Trace):
        tokens = max(1, round(MOONCAKE_BLOCK_TOKENS * scenario.arrivals.token_scale))
        return tuple(Segment(f"block-{block}", tokens) for block in start.prefix_blocks)
    shared = scenario.workload.shared_prefix
    if shared is None:
        return ()
    return (Segment(f"prefix-{rng.integers(shared.groups)}", shared.tokens),)


class _TurnDraws:
    """Draws what varies from request to request, one aspect per stream."""

    def __init__(self, scenario: Scenario) -> None:
        self._work = scenario.workload
        self._verify_share = scenario.verify_share
        names = ("prompt", "output", "think", "disconnect", "disconnect-after", "deadline", "verify")
        self._streams = {name: stream(scenario.seed, name) for name in names}

    def _one(self, distribution: Distribution, name: str) -> float:
        return float(sample(distribution, 1, self._streams[name])[0])

    def segments(
        self, index: int, tenant: int, start: TraceRequest, prefix: tuple[Segment, ...]
    ) -> tuple[Segment, ...]:
        """The shared prefix, then text that no other request has, up to the length asked for (at least one token)."""
        own = self._work.tenants[tenant].prompt_tokens or self._work.prompt_tokens
        total = start.prompt_tokens or max(1, round(self._one(own, "prompt")))
        kept: list[Segment] = []
        for segment in prefix:
            if total <= segment.tokens:
                break
            kept.append(segment)
            total -= segment.tokens
        return (*kept, Segment(f"request-{index}", total))

    def output_tokens(self, tenant: int) -> int:
        return max(1, round(self._one(self._work.tenants[tenant].output_tokens or self._work.output_tokens, "output")))

    def think_s(self) -> float:
        return self._one(self._work.conversation.think_s, "think") if self._work.conversation else 0.0

    def disconnect_after_s(self) -> float | None:
        spec = self._work.disconnect
        if spec is None or self._streams["disconnect"].random() >= spec.share:
            return None
        return self._one(spec.after_s, "disconnect-after")

    def deadline_s(self) -> float | None:
        return None if self._work.deadline_s is None else self._one(self._work.deadline_s, "deadline")

    def is_verified(self) -> bool:
        return bool(self._streams["verify"].random() < self._verify_share)
