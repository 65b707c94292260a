"""Whether a request is accepted: while there is room, or its tenant has not had its share of it, and in time.

A queue that is full refuses whoever has more than a fair share in it; others are still accepted, so that the queue of k
equal tenants holds at most 1 + 1/2 + … + 1/k times its limit. What would be begun too late is refused at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from service.engine.config import LoopConfig
from service.engine.drain_rate import DrainRate
from service.engine.fair_queue import OUTPUT_COST
from service.engine.forecast import Ahead, EngineRoom, Forecast
from service.errors import OverloadedError
from service.types import Claim, StepStats

LEAST_RETRY_S = 0.1
MOST_RETRY_S = 60.0


@dataclass(slots=True)
class Account:
    """What one tenant has in the engine, at one priority: sequences that are begun, and those that wait with the tokens
    that they will need."""

    priority: int
    weight: float
    num_begun: int = 0
    num_waiting: int = 0
    num_prompt_tokens: float = 0.0
    num_output_tokens: float = 0.0

    @property
    def num_sequences(self) -> int:
        return self.num_begun + self.num_waiting

    @property
    def work(self) -> float:
        """Of the waiting, as the fair queue counts it."""
        return self.num_prompt_tokens + OUTPUT_COST * self.num_output_tokens


class Admission:
    """Not locked: its owner sees to that. Instants are monotonic seconds."""

    def __init__(
        self, forecast: Forecast, *, max_sequences: int, queue_timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self.forecast = forecast
        self._max_sequences = max_sequences
        self._queue_timeout_s = queue_timeout_s
        self._clock = clock
        self._accounts: dict[tuple[int, str], Account] = {}
        self._drain_rate = DrainRate()
        self._num_computed = 0.0  # prompt tokens of sequences that are not begun
        self._num_refused = 0
        self._num_refused_prompt_tokens = 0.0

    @classmethod
    def of(cls, room: EngineRoom, config: LoopConfig, queue_timeout_s: float, clock: Callable[[], float]) -> Admission:
        """Of an engine with that room."""
        return cls(
            Forecast(config.step_cost, room),
            max_sequences=room.max_num_seqs + config.max_waiting,
            queue_timeout_s=queue_timeout_s,
            clock=clock,
        )

    @property
    def num_waiting(self) -> int:
        return sum(account.num_waiting for account in self._accounts.values())

    @property
    def num_prefill_left(self) -> float:
        """Prompt tokens still to be computed, of all that is accepted by now; hits as far as they can be foreseen."""
        return max(0.0, sum(account.num_prompt_tokens for account in self._accounts.values()) - self._num_computed)

    def check(self, claim: Claim, num_prompt_tokens: int | None = None) -> None:
        """Raise OverloadedError unless a request is accepted now; None where its prompt is not known yet."""
        now = self._clock()
        wait_s = self.wait_s(claim)
        if self._is_full_for(claim):
            raise self._refused(wait_s, num_prompt_tokens, "its queue is full")
        left_s = self._queue_timeout_s if claim.deadline_at == math.inf else max(0.0, claim.deadline_at - now)
        prompt_s = self.forecast.prompt_s(self.forecast.uncached(num_prompt_tokens or 0))
        # The prompt itself takes time as well; but half of the time may be spent waiting, however long it is.
        if wait_s > left_s - min(prompt_s, 0.5 * left_s):
            raise self._refused(wait_s, num_prompt_tokens, f"this request would not be begun for {wait_s:.1f} s")

    def is_overloaded(self) -> bool:
        """Whether a request of a tenant that has nothing here yet would be refused."""
        newcomer = Claim(tenant="\0")
        return self._is_full_for(newcomer) or self.wait_s(newcomer) > self._queue_timeout_s

    def wait_s(self, claim: Claim) -> float:
        """Until a request that comes now would be begun, as far as steps have taught."""
        return self.forecast.wait_s(self._ahead_of(claim))

    def account_of(self, claim: Claim) -> Account:
        """Where the sequences of a request that is accepted are counted."""
        account = self._accounts.setdefault((claim.priority, claim.tenant), Account(claim.priority, claim.weight))
        account.weight = claim.weight
        return account

    def settle(self, stats: StepStats, num_begun_prompt_tokens: int) -> None:
        """Take in a step, after the accounts: so many prompt tokens, found ones apart, are of sequences begun in it."""
        self.forecast.learn(stats)
        self._drain_rate.note(len(stats.finished), self._clock())
        self._accounts = {key: account for key, account in self._accounts.items() if account.num_sequences}
        self._num_computed = max(0.0, self._num_computed + stats.num_prompt_tokens - num_begun_prompt_tokens)
        if not self.num_waiting:
            self._num_computed = 0.0

    def completed(self, stats: StepStats) -> StepStats:
        """`stats` of a step, with what is known here: what was refused since the last one, and the wait after it."""
        stats = replace(
            stats,
            wait_s=self.wait_s(Claim()),
            num_refused=self._num_refused,
            num_refused_prompt_tokens=round(self._num_refused_prompt_tokens),
        )
        self._num_refused, self._num_refused_prompt_tokens = 0, 0.0
        return stats

    def clear(self) -> None:
        """Nothing is left in the engine."""
        self._accounts.clear()
        self._num_computed = 0.0

    def _refused(self, wait_s: float, num_prompt_tokens: int | None, why: str) -> OverloadedError:
        is_known = num_prompt_tokens is not None
        self._num_refused += 1
        self._num_refused_prompt_tokens += num_prompt_tokens or (0.0 if is_known else self.forecast.mean_prompt_tokens)
        drained_s = wait_s or self._drain_rate.time_for(self.num_waiting, self._clock())
        return OverloadedError(
            f"The server is overloaded: {why}, {self.num_waiting} others wait. Please retry later.",
            retry_after_s=min(max(drained_s, LEAST_RETRY_S), MOST_RETRY_S),
        )

    def _is_full_for(self, claim: Claim) -> bool:
        mine = self._accounts.get((claim.priority, claim.tenant))
        num_mine = 0 if mine is None else mine.num_sequences
        others = [account for account in self._accounts.values() if account is not mine]
        share = self._max_sequences * claim.weight / (claim.weight + sum(account.weight for account in others))
        return num_mine >= share and num_mine + sum(account.num_sequences for account in others) >= self._max_sequences

    def _ahead_of(self, claim: Claim) -> Ahead:
        """What the engine will begin before a new request, and who holds a place that it would not get."""
        mine = self._accounts.get((claim.priority, claim.tenant), Account(claim.priority, claim.weight))
        my_work = mine.work + self.forecast.mean_prompt_tokens + OUTPUT_COST * self.forecast.mean_output_tokens
        my_places = mine.num_sequences + 1
        ahead = Ahead()
        for other in self._accounts.values():
            ratio = other.weight / claim.weight
            share = min(1.0, my_work * ratio / other.work) if other.work else 0.0
            staying = min(1.0 * other.num_begun, my_places * ratio)
            if other is mine or other.priority > claim.priority:
                share, staying = 1.0, other.num_begun
            elif other.priority < claim.priority:
                share, staying = 0.0, 0.0
            ahead.num_running += other.num_begun
            ahead.num_staying += staying
            ahead.num_waiting += share * other.num_waiting
            ahead.num_prompt_tokens += share * other.num_prompt_tokens
            ahead.num_output_tokens += share * other.num_output_tokens
        ahead.num_prompt_tokens = max(0.0, ahead.num_prompt_tokens - self._num_computed)
        return ahead
