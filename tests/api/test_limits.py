"""Accounts of tenants: what is let through, what is refused, and until when."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.keys import Tenant
from service.api.limits import MINUTE_S, Debt, Limiter, Usage, duration
from service.errors import RateLimitError


@dataclass
class World:
    """One tenant and a clock, set by hand."""

    tenant: Tenant
    now: float = 1000.0
    num_replicas: int = 1

    def __post_init__(self) -> None:
        self.limiter = Limiter(lambda: self.now, lambda: self.num_replicas)

    def ask(self, num_tokens: int = 0) -> Usage:
        usage = self.limiter.usage(self.tenant)
        usage.admit()
        try:
            usage.reserve(num_tokens)
        except RateLimitError:
            usage.close(0)
            raise
        return usage

    def refusal(self, num_tokens: int = 0) -> RateLimitError:
        with pytest.raises(RateLimitError) as caught:
            self.ask(num_tokens)
        return caught.value

    def headers(self) -> dict[str, str]:
        return self.limiter.usage(self.tenant).headers()


def world(**limits: int) -> World:
    return World(Tenant(name="alice", keys=(), **limits))


def test_a_minute_of_requests_may_come_at_once() -> None:
    """Then one more for each that the time since then pays for; a refusal says when."""
    alice = world(requests_per_minute=6)
    for _ in range(6):
        alice.ask()

    assert alice.refusal().retry_after_s == pytest.approx(10)
    alice.now += 9.999
    assert alice.refusal().retry_after_s == pytest.approx(0.001)
    alice.now += 0.001
    alice.ask()
    assert "6 requests per minute" in str(alice.refusal())


def test_headers_count_down_and_recover() -> None:
    """What is left, and when all of it is there again."""
    alice = world(requests_per_minute=6, tokens_per_minute=600)
    alice.ask(300)

    assert alice.headers() == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-reset-requests": "10s",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "300",
        "x-ratelimit-reset-tokens": "30s",
    }
    alice.now += 40
    assert alice.headers()["x-ratelimit-remaining-requests"] == "6"
    assert alice.headers()["x-ratelimit-remaining-tokens"] == "600"
    assert alice.headers()["x-ratelimit-reset-tokens"] == "0ms"


def test_without_limits_nothing_is_told_or_refused() -> None:
    """A limit that is left out does not exist."""
    alice = world()
    for _ in range(1000):
        alice.ask(10**9)

    assert alice.headers() == {}


def test_tokens_that_were_not_used_are_given_back() -> None:
    """What counts in the end is what was used."""
    alice = world(tokens_per_minute=1000)
    usage = alice.ask(900)
    assert alice.refusal(200).retry_after_s == pytest.approx(6)
    usage.close(100)

    assert alice.headers()["x-ratelimit-remaining-tokens"] == "900"
    alice.ask(900)


def test_a_request_beyond_the_limit_waits_for_all_of_it_and_then_owes() -> None:
    """It is not refused for ever, and the rate is kept in the long run."""
    alice = world(tokens_per_minute=1000)
    alice.ask(1).close(1)
    assert alice.refusal(3000).retry_after_s == pytest.approx(0.06)
    alice.now += 0.06
    alice.ask(3000).close(3000)

    assert alice.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert alice.refusal(1).retry_after_s == pytest.approx(120.06)


def test_a_request_that_is_refused_uses_nothing() -> None:
    """Neither of tokens nor of places; only its attempt counts as a request."""
    alice = world(tokens_per_minute=100, concurrent=1)
    alice.ask(100).close(100)
    for _ in range(5):
        alice.refusal(50)
    alice.now += 30

    alice.ask(50)


def test_so_many_at_one_time() -> None:
    """A place is free again when a request ends."""
    alice = world(concurrent=2)
    first, _ = alice.ask(), alice.ask()
    assert "2 requests that 'alice' may have at one time" in str(alice.refusal())
    first.close(0)

    alice.ask()


def test_tenants_have_accounts_of_their_own() -> None:
    """One's flood is not another's."""
    alice = world(requests_per_minute=1)
    alice.ask()
    alice.refusal()
    alice.tenant = alice.tenant.model_copy(update={"name": "bob"})

    alice.ask()


def test_replicas_share_a_limit() -> None:
    """Each lets through its part, at least one request; headers speak of the whole."""
    alice = world(requests_per_minute=12, concurrent=6)
    alice.num_replicas = 4
    for _ in range(2):
        alice.ask()
    assert "6 requests that" in str(alice.refusal())
    alice.tenant = alice.tenant.model_copy(update={"concurrent": None})
    alice.ask()
    assert alice.refusal().retry_after_s == pytest.approx(20)
    assert alice.headers()["x-ratelimit-limit-requests"] == "12"
    assert alice.headers()["x-ratelimit-remaining-requests"] == "0"


def test_a_share_below_one_request_keeps_its_rate() -> None:
    """One request per minute among four replicas: each lets one through at once, then one in four minutes."""
    alice = world(requests_per_minute=1)
    alice.num_replicas = 4
    alice.ask()

    assert alice.refusal().retry_after_s == pytest.approx(4 * MINUTE_S)


@given(
    limit=st.integers(1, 1000),
    asked=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 3000), st.floats(0, 1)), max_size=60),
)
def test_no_more_than_the_limit_is_used(limit: int, asked: list[tuple[float, int, float]]) -> None:
    """Whatever comes when: by any instant, at most a minute's worth beyond what the time has paid for, and the excess
    of the last request that was larger than a minute's worth. Who waits as long as he is told to is let through."""
    debt, now, used = Debt(), 0.0, 0.0
    for pause_s, amount, part in asked:
        now += pause_s
        wait_s = debt.wait_s(amount, limit, now)
        if wait_s > 0:
            assert debt.wait_s(amount, limit, now + wait_s) == 0
            continue
        assert used + min(amount, limit) <= limit * (1 + now / MINUTE_S) + 1e-3
        debt.use(amount, limit, now)
        debt.use(-amount * part, limit, now)
        used += amount * (1 - part)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0171, "18ms"),
        (0.017, "17ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (59.9999, "1m0s"),
        (60, "1m0s"),
        (360.25, "6m0.25s"),
    ],
)
def test_durations_are_written_as_clients_read_them(seconds: float, text: str) -> None:
    """Minutes, seconds and thousandths."""
    assert duration(seconds) == text
