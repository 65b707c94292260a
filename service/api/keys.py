"""Who may ask: the file of tenants, with the hashes of their keys.

    [[tenant]]
    name = "alice"                           # as logs and metrics say it
    keys = ["<SHA-256 of a key, in hex>"]    # two while one is replaced by another
    role = "user"                            # user: the API; metrics: /metrics alone; admin: everything
    weight = 2.0                             # share of a busy engine, against others' weights
    priority = 0                             # higher goes first
    requests_per_minute = 60                 # a limit that is left out does not exist
    tokens_per_minute = 100000
    concurrent = 8

All but `name` and `keys` may be left out. The file is read again when it changes. The keys themselves are nowhere:
`headcount key` prints a new one once.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import tomllib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from service.errors import ConfigError

KEY_PREFIX = "hc-"
_KEY_BYTES = 32

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Limit = Annotated[int, Field(ge=1, le=1 << 40)] | None
Role = Literal["user", "metrics", "admin"]

_logger = logging.getLogger(__name__)


class Tenant(BaseModel):
    """What one tenant may do. `keys` are hashes; limits hold for the whole fleet, None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    name: Name
    keys: tuple[Digest, ...] = Field(repr=False)
    role: Role = "user"
    weight: float = Field(1.0, ge=0.001, le=1000)
    priority: int = Field(0, ge=-100, le=100)
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    concurrent: Limit = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tenant: tuple[Tenant, ...]


class KeyRing:
    """The keys of a file. Raises ConfigError when it cannot be read; later such a change is logged, and not taken."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        self._tenants = read_tenants(path)

    def tenant_of(self, key: bytes) -> Tenant | None:
        """Whose key it is. Every hash is looked at, so that the time taken tells nothing of them."""
        digest = sha256(key).hexdigest()
        found = None
        for tenant in self._current():
            for known in tenant.keys:
                if hmac.compare_digest(known, digest):
                    found = tenant
        return found

    def _current(self) -> Sequence[Tenant]:
        version = _version(self._path)
        if version != self._version:
            self._version = version
            try:
                self._tenants = read_tenants(self._path)
                _logger.info("read %s: %d tenants", self._path, len(self._tenants))
            except ConfigError as error:
                _logger.error("the API keys stay as they were: %s", error)  # noqa: TRY400 - the sentence says it all
        return self._tenants


def read_tenants(path: Path) -> tuple[Tenant, ...]:
    """The tenants in a file. Raises ConfigError, which names the entry at fault and shows no hash."""
    try:
        tenants = _File.model_validate(tomllib.loads(path.read_text())).tenant
    except FileNotFoundError:
        raise ConfigError(f"The file of API keys {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The file of API keys {path} cannot be read: {error}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"The file of API keys {path} is not valid at {place}: {first['msg']}.") from None
    for kind, values in (
        ("name", [tenant.name for tenant in tenants]),
        ("key", [digest for tenant in tenants for digest in tenant.keys]),
    ):
        if len(values) != len(set(values)):
            raise ConfigError(f"The file of API keys {path} has one {kind} twice.")
    return tenants


def new_key() -> str:
    """A key that nobody can guess: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes with the file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
