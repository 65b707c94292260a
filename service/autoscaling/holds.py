"""How long each replica is kept once it is not needed: ski rental, with the price of absence learned.

Level n is the n-th replica. It is needed while the demand calls for n or more. Between two such spells lies a gap: to
keep the level through it costs its length in rent; to let it go costs what is missed when the demand returns before the
level does, plus the start. Each level keeps the books of its last gaps and picks the hold that would have been cheapest
on them, with one imagined gap of unknown length as a prior. That prior alone gives the classic rule: rent until the
rent equals the price, which never costs more than twice the best.

The price of absence is counted by two fluid queues per level, in replica-seconds of work: one as if n - 1 replicas had
met the spell for the length of a cold start, one as if n had. What is late in the first and not in the second is a miss
that the level would have saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.autoscaling.forecast import late_share

Array = NDArray[np.float64]

NUM_GAPS = 16  # remembered per level
_PRIOR_GAPS = np.array([0.125, 0.25, 0.5, 1.0, 4.0])  # of the price of absence; together they weigh as one gap
_NEVER = 1e9  # idle time of a level that was never needed, s


@dataclass(frozen=True, slots=True)
class Spell:
    """What a second brought: `need` in replicas, `work` in replicas, `arrivals` in requests/s, lasting `dt` seconds."""

    need: float
    work: float
    arrivals: float
    dt: float


@dataclass(frozen=True, slots=True)
class Prices:
    """`cold_start_s` is what a start costs and how long it takes; `slack_s` how long a queue may be, and is at the most
    where the late are refused; `per_miss` in replica-seconds."""

    cold_start_s: float
    slack_s: float
    per_miss: float
    refuses_late: bool = False


@dataclass(frozen=True, slots=True)
class Holds:
    """The books of all levels: arrays over n = 1 … max. Immutable: `observe` returns the next state."""

    idle_s: Array  # since the level was last needed
    spell_s: Array  # since the spell began, cold-start long interruptions apart
    gap_s: Array  # that preceded the spell
    charge: Array  # misses in the spell that the level saves, priced
    queue_absent: Array
    queue_present: Array
    gaps: Array  # level × NUM_GAPS, oldest first; nan: none
    price: Array  # of absence: running mean over spells; nan: never needed
    hold_s: Array
    watched_s: float

    @classmethod
    def fresh(cls, num_levels: int, num_present: int = 0, start_s: float = 0.0) -> Holds:
        def zeros() -> Array:
            return np.zeros(num_levels)

        return cls(
            idle_s=np.where(np.arange(num_levels) < num_present, start_s + 1.0, _NEVER),
            watched_s=0.0,
            spell_s=zeros(),
            gap_s=zeros(),
            charge=zeros(),
            queue_absent=zeros(),
            queue_present=zeros(),
            gaps=np.full((num_levels, NUM_GAPS), np.nan),
            price=np.full(num_levels, np.nan),
            hold_s=zeros(),
        )

    def observe(self, spell: Spell, prices: Prices) -> Holds:
        """The books after one more second."""
        levels = np.arange(1.0, len(self.idle_s) + 1.0)
        start_s, dt = prices.cold_start_s, spell.dt
        needed = spell.need > levels - 1.0
        begins = needed & (self.idle_s > start_s)
        gap_s = np.where(begins, np.minimum(self.idle_s, self.watched_s), self.gap_s)
        charge = np.where(begins, 0.0, self.charge)
        spell_s = np.where(begins, 0.0, self.spell_s + dt)
        idle_s = np.where(needed, 0.0, self.idle_s + dt)

        enough = np.maximum(levels, np.ceil(spell.need))
        is_early = needed & (spell_s < start_s)
        queue_absent, late_absent = _queue(self.queue_absent, np.where(is_early, levels - 1.0, enough), spell, prices)
        queue_present, late_present = _queue(self.queue_present, np.where(is_early, levels, enough), spell, prices)
        saved = np.maximum(0.0, late_absent - late_present)
        charge = charge + prices.per_miss * spell.arrivals * dt * saved
        ends = ~needed & (idle_s > start_s) & (self.idle_s <= start_s)
        books = replace(
            self,
            idle_s=idle_s,
            spell_s=spell_s,
            gap_s=gap_s,
            charge=charge,
            queue_absent=queue_absent,
            queue_present=queue_present,
            watched_s=self.watched_s + dt,
        )
        return _closed(books, np.flatnonzero(ends), start_s) if ends.any() else books

    def num_held(self, prior_s: float, start_s: float) -> int:
        """The highest level that is needed now or not yet worth letting go; `prior_s` for those never priced.

        A level can only be held along with all below it: those that are past their hold are paid by what is left of
        the holds above.
        """
        left_s = self._holds_s(prior_s, start_s) - self.idle_s
        num_held = int(np.count_nonzero(self.idle_s == 0.0))
        for level in np.flatnonzero(left_s >= 0.0) + 1:
            if level > num_held and left_s[num_held:level].sum() >= 0.0:
                num_held = int(level)
        return num_held

    def idle_of(self, level: int) -> float:
        """Seconds since level (1 …) was last needed; 0 for level 0."""
        return float(self.idle_s[level - 1]) if level else 0.0

    def hold_of(self, level: int, prior_s: float, start_s: float) -> float:
        """Seconds that level (1 …) may be idle."""
        return float(self._holds_s(prior_s, start_s)[level - 1]) if level else 0.0

    def price_of(self, level: int) -> float:
        """Of the absence of level (1 …), in replica-seconds; nan while unknown."""
        return float(self.price[level - 1]) if level else math.nan

    def _holds_s(self, prior_s: float, start_s: float) -> Array:
        return np.maximum(np.where(np.isnan(self.price), prior_s, self.hold_s), start_s)


def _closed(books: Holds, ended: NDArray[np.intp], start_s: float) -> Holds:
    """Enter the spells that are over and choose the holds of their levels anew."""
    gaps, price, hold_s = books.gaps.copy(), books.price.copy(), books.hold_s.copy()
    for level in ended:
        cost = books.charge[level] + start_s
        price[level] = cost if np.isnan(price[level]) else 0.7 * price[level] + 0.3 * cost
        if books.gap_s[level] > start_s:
            gaps[level] = np.append(gaps[level, 1:], books.gap_s[level])
        hold_s[level] = _cheapest_hold(gaps[level], price[level], start_s)
    return replace(books, gaps=gaps, price=price, hold_s=hold_s)


def _queue(queue: Array, capacity: Array, spell: Spell, prices: Prices) -> tuple[Array, Array]:
    """The queue after the second, and the share of its requests that are late; or, where the late are refused, that
    find no room."""
    after = np.maximum(0.0, queue + (spell.work - capacity) * spell.dt)
    room = prices.slack_s * np.maximum(capacity, 0.5)
    if prices.refuses_late:
        over = np.maximum(0.0, after - room)
        return after - over, np.clip(over / max(1e-9, spell.work * spell.dt), 0.0, 1.0)
    return after, late_share(after, room)


def _cheapest_hold(gaps: Array, price: float, start_s: float) -> float:
    """The hold that minimises rent and absence over the gaps of one level and the imagined one."""
    known = gaps[~np.isnan(gaps)]
    all_gaps = np.concatenate([known, _PRIOR_GAPS * price])
    weights = np.concatenate([np.ones(len(known)), np.full(len(_PRIOR_GAPS), 1.0 / len(_PRIOR_GAPS))])
    candidates = np.concatenate([[0.0], all_gaps[all_gaps <= price]])
    is_outlived = all_gaps[None, :] > candidates[:, None]
    totals = (weights * np.where(is_outlived, candidates[:, None] + price, all_gaps[None, :])).sum(axis=1)
    # Of equally cheap holds the longest: it is the safer one.
    best = candidates[totals <= totals.min() * (1.0 + 1e-9)].max()
    return max(start_s, float(best) * 1.05)
