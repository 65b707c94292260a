"""Files of tenants, where the key of each is `key-of-` and its name, and the application that asks for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service.api.app import create_app
from service.api.keys import KeyRing
from tests.api.fakes import MESSAGES, ScriptedBackend, client_for, make_state
from tests.api.test_fleet import View

ADMIN = 'role = "admin"'
METRICS = 'role = "metrics"'
ASK = {"messages": MESSAGES, "max_tokens": 9}


def hash_of(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def key_of(name: str) -> str:
    return f"key-of-{name}"


def headers_of(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(name)}"}


def entry(name: str, more: str = "") -> str:
    return f'[[tenant]]\nname = "{name}"\nkeys = ["{hash_of(key_of(name))}"]\n{more}\n'


def write(path: Path, *entries: str) -> Path:
    """A file of these entries at `path`, in one step, as Kubernetes changes a mounted Secret."""
    draft = path.with_suffix(".draft")
    draft.write_text("".join(entries))
    return draft.replace(path)


def ring(directory: Path, *entries: str) -> KeyRing:
    return KeyRing(write(directory / "keys.toml", *entries))


def app_of(keys: KeyRing | None, backend: ScriptedBackend | None = None, **changes: object) -> FastAPI:
    """With the routes of a replica and of the front."""
    return create_app(make_state(backend or ScriptedBackend(), keys=keys, fleet=View(), **changes))


@asynccontextmanager
async def client(directory: Path, *entries: str, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(app_of(ring(directory, *entries), **changes)) as http:
        yield http
