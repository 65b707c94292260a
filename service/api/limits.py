"""How much a tenant may use: requests and tokens per minute, requests at one time.

A limit per minute is a debt that is worked off as time goes by (the generic cell rate algorithm, ITU-T I.371): what is
used costs `60 / limit` seconds each, and there may be 60 seconds of debt. So a whole minute's worth may come at once,
and the rate is kept in the long run. A request that costs more than a minute waits for an empty slate, and then owes.

Each replica enforces its share, the limit over the number of replicas, and shows what is left as if the others had used
as much as itself. docs/security.md says how exact that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from service.api.keys import Tenant
from service.errors import RateLimitError

MINUTE_S = 60.0
CONCURRENT_RETRY_S = 1.0  # nobody knows when one of the tenant's requests ends
_ROUNDING = 1e-6
_SECOND_MS = 1000
_MINUTE_MS = 60_000


@dataclass(slots=True)
class Debt:
    """What one limit per minute is owed: until `_paid_at` (an instant), at the pace of the limit."""

    _paid_at: float = -math.inf

    def wait_s(self, amount: float, limit: float, now: float) -> float:
        """Seconds until `amount` may be used; 0 for now."""
        cost_s = min(MINUTE_S, MINUTE_S * amount / limit)
        wait_s = self.left_s(now) + cost_s - MINUTE_S
        return wait_s if wait_s > _ROUNDING else 0.0

    def use(self, amount: float, limit: float, now: float) -> None:
        """A negative amount is given back."""
        self._paid_at = max(now, self._paid_at) + MINUTE_S * amount / limit

    def left_s(self, now: float) -> float:
        """Seconds until nothing is owed."""
        return max(0.0, self._paid_at - now)


@dataclass(slots=True)
class _Account:
    requests: Debt = field(default_factory=Debt)
    tokens: Debt = field(default_factory=Debt)
    num_running: int = 0


class Limiter:
    """The accounts of all tenants in this process. `num_replicas` says among how many limits are shared."""

    def __init__(self, clock: Callable[[], float], num_replicas: Callable[[], int]) -> None:
        self._clock = clock
        self._num_replicas = num_replicas
        self._accounts: dict[str, _Account] = {}

    def usage(self, tenant: Tenant) -> Usage:
        """Of one request to come."""
        account = self._accounts.setdefault(tenant.name, _Account())
        return Usage(tenant, account, self._clock, 1.0 / max(1, self._num_replicas()))


class Usage:
    """One request's part of its tenant's account: `admit` it, `reserve` its tokens, and `close` it however it ends."""

    def __init__(self, tenant: Tenant, account: _Account, clock: Callable[[], float], share: float) -> None:
        self._tenant = tenant
        self._account = account
        self._clock = clock
        self._share = share
        self.num_reserved = 0

    def admit(self) -> None:
        """Raises RateLimitError, and then has used nothing."""
        tenant, account = self._tenant, self._account
        most = None if tenant.concurrent is None else math.ceil(tenant.concurrent * self._share)
        if most is not None and account.num_running >= most:
            raise RateLimitError(
                f"The {tenant.concurrent} requests that '{tenant.name}' may have at one time are running.",
                retry_after_s=CONCURRENT_RETRY_S,
            )
        self._use(account.requests, 1, tenant.requests_per_minute, "requests")
        account.num_running += 1

    def reserve(self, num_tokens: int) -> None:
        """Take what the request may need at most. Raises RateLimitError, and then has taken none."""
        self._use(self._account.tokens, num_tokens, self._tenant.tokens_per_minute, "tokens")
        self.num_reserved += num_tokens

    def close(self, num_tokens: int) -> None:
        """An admitted request has ended, and used `num_tokens`: what it reserved beyond is given back."""
        self._account.num_running -= 1
        limit = self._tenant.tokens_per_minute
        if limit is not None:
            self._account.tokens.use(num_tokens - self.num_reserved, limit * self._share, self._clock())

    def headers(self) -> dict[str, str]:
        """Limits and what is left of them, as OpenAI's API tells it."""
        now = self._clock()
        tenant, account = self._tenant, self._account
        told: dict[str, str] = {}
        for name, limit, debt in (
            ("requests", tenant.requests_per_minute, account.requests),
            ("tokens", tenant.tokens_per_minute, account.tokens),
        ):
            if limit is not None:
                left_s = debt.left_s(now)
                remaining = max(0, math.floor(limit * (1 - left_s / MINUTE_S) + _ROUNDING))
                told[f"x-ratelimit-limit-{name}"] = str(limit)
                told[f"x-ratelimit-remaining-{name}"] = str(remaining)
                told[f"x-ratelimit-reset-{name}"] = duration(left_s)
        return told

    def _use(self, debt: Debt, amount: int, limit: int | None, name: str) -> None:
        if limit is None:
            return
        now, share = self._clock(), limit * self._share
        wait_s = debt.wait_s(amount, share, now)
        if wait_s > 0:
            raise RateLimitError(
                f"The limit of '{self._tenant.name}' is {limit} {name} per minute, and this request has {amount}:"
                f" please try again in {duration(wait_s)}.",
                retry_after_s=wait_s,
            )
        debt.use(amount, share, now)


def duration(seconds: float) -> str:
    """As OpenAI's headers have it, `6m0s`, `1.5s` or `17ms`; rounded up, so that who waits so long may go on."""
    milliseconds = math.ceil(seconds * _SECOND_MS - _ROUNDING)
    if milliseconds < _SECOND_MS:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, _MINUTE_MS)
    return (f"{minutes}m" if minutes else "") + f"{rest / _SECOND_MS:g}s"
