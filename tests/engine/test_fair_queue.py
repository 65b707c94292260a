"""Whose turn it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.fair_queue import FairQueue
from service.engine.sequence import Sequence
from service.types import Claim
from tests.engine.fakes import request


def sequence(tenant: str = "", *, at: float = 0.0, weight: float = 1.0, priority: int = 0) -> Sequence:
    asked = replace(request(1, arrival_at=at), claim=Claim(tenant=tenant, weight=weight, priority=priority))
    return Sequence.of(asked, 0, fresh_seed=0, eos_token_ids=frozenset())


def begin_next(queue: FairQueue, cost: float = 1.0) -> Sequence:
    """The head runs, at that cost, and is done."""
    head = queue.head()
    assert head is not None
    queue.begin(head)
    queue.charge(head, cost)
    queue.end(head)
    return head


def queue_of(*sequences: Sequence) -> FairQueue:
    queue = FairQueue()
    for each in sequences:
        queue.push(each)
    return queue


def test_within_a_tenant_it_is_a_plain_queue() -> None:
    """First come, first served, whatever each costs."""
    sequences = [sequence(at=i) for i in range(5)]
    queue = queue_of(*sequences)

    assert [begin_next(queue, cost=i) for i in range(5)] == sequences
    assert queue.head() is None


def test_tenants_take_turns_whoever_asked_first_and_however_often() -> None:
    """Who floods waits in its own queue."""
    queue = queue_of(*(sequence("flood", at=0.0) for _ in range(6)), *(sequence("quiet", at=1.0) for _ in range(2)))

    assert [begin_next(queue).claim.tenant for _ in range(8)] == ["flood", "quiet"] * 2 + ["flood"] * 4


def test_tokens_count_and_not_requests() -> None:
    """Whose requests cost three times as much goes once in four."""
    queue = queue_of(*(sequence(name) for _ in range(12) for name in ("large", "small")))
    costs = {"large": 3.0, "small": 1.0}
    served = dict.fromkeys(costs, 0.0)
    for _ in range(12):
        head = queue.head()
        assert head is not None
        served[begin_next(queue, costs[head.claim.tenant]).claim.tenant] += costs[head.claim.tenant]

    assert served == {"large": 9.0, "small": 9.0}


@given(weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=5), data=st.data())
def test_what_backlogged_tenants_get_differs_by_a_request_at_most(weights: list[float], data: st.DataObject) -> None:
    """Per weight, whatever their requests cost: the bound of the paper."""
    names = [str(i) for i in range(len(weights))]
    most = 10
    queue = queue_of(*(sequence(n, weight=w) for n, w in zip(names, weights, strict=True) for _ in range(60)))
    served = dict.fromkeys(names, 0.0)
    for _ in range(60):
        cost = data.draw(st.integers(1, most))
        begun = begin_next(queue, cost)
        served[begun.claim.tenant] += cost / begun.claim.weight

    assert max(served.values()) - min(served.values()) <= most / min(weights)


def test_who_comes_back_has_saved_nothing_up() -> None:
    """A tenant that asked for nothing for a while shares from now on, and gets no more than that."""
    queue = queue_of(sequence("late"), *(sequence("busy") for _ in range(100)))
    for _ in range(41):
        begin_next(queue)
    for _ in range(20):
        queue.push(sequence("late"))

    turns = [begin_next(queue).claim.tenant for _ in range(20)]

    assert turns.count("late") in {10, 11}


def test_a_credit_is_what_it_may_have_saved_up() -> None:
    """A burst of so many tokens goes first, and no more."""
    queue = FairQueue(credit=5.0)
    for _ in range(100):
        queue.push(sequence("busy"))
    for _ in range(40):
        begin_next(queue)
    for _ in range(20):
        queue.push(sequence("burst"))

    turns = [begin_next(queue).claim.tenant for _ in range(15)]

    assert turns.index("busy") in {5, 6}
    assert turns[6:].count("burst") in {4, 5}


def test_who_is_sent_back_is_not_next_before_who_it_made_room_for() -> None:
    """Though it was served less: it gave its place away for a reason."""
    queue = queue_of(sequence("small"), sequence("small"))
    small = list(queue)
    for each in small:
        queue.begin(each)
    large = sequence("large")
    queue.push(large)
    queue.charge(large, 50.0)

    queue.send_back(small[1])

    assert queue.head() is large


def test_a_higher_priority_goes_first() -> None:
    """Whatever was served."""
    queue = queue_of(sequence("a"), sequence("b", priority=1), sequence("c", priority=-1), sequence("b", priority=1))

    assert [begin_next(queue, 100.0).claim.tenant for _ in range(4)] == ["b", "b", "a", "c"]


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        (sequence("flood"), False),  # its own
        (sequence("quiet"), True),
        (sequence("quiet", weight=0.25), False),  # one place for it is as good as four
        (sequence("quiet", priority=1), True),
        (sequence("quiet", priority=-1), False),
    ],
    ids=["own", "quiet", "light", "higher", "lower"],
)
def test_a_claim_on_a_place(waiting: Sequence, expected: bool) -> None:
    """Who would have fewer places for its weight, or a higher priority, may take one of four."""
    running = [sequence("flood") for _ in range(4)]
    queue = queue_of(*running)
    for each in running:
        queue.begin(each)
    queue.push(waiting)

    assert queue.has_claim(waiting, running[0]) is expected


def test_when_nobody_is_left_all_is_forgiven() -> None:
    """The books are of a shortage: they do not grow with the tenants that ever came."""
    queue = queue_of(sequence("a"))
    begin_next(queue, 1000.0)
    first, second = sequence("a", at=1.0), sequence("b", at=2.0)
    queue.push(first)
    queue.push(second)

    assert queue.head() is first
