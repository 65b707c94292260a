"""Keys and limits as the official clients see them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import anthropic
import openai
import pytest

from tests.api.fakes import MODEL_ID, serving
from tests.api.tenants import app_of, entry, key_of, ring


def server(directory: Path, more: str) -> AbstractAsyncContextManager[int]:
    """The port of a server that knows alice."""
    return serving(app_of(ring(directory, entry("alice", more))))


async def test_openais_client(tmp_path: Path) -> None:
    """A key is the client's `api_key`; a wrong one, a right that is missing and a limit are errors of its own."""
    async with (
        server(tmp_path, "requests_per_minute = 1") as port,
        openai.DefaultAsyncHttpxClient(trust_env=False) as http,
    ):
        url = f"http://127.0.0.1:{port}/v1"
        make = partial(openai.AsyncOpenAI, base_url=url, http_client=http, max_retries=0)
        alice, mallory = make(api_key=key_of("alice")), make(api_key="sk-guess")
        ask = alice.completions.with_raw_response

        answer = await ask.create(model=MODEL_ID, prompt="hi")
        with pytest.raises(openai.RateLimitError) as limited:
            await ask.create(model=MODEL_ID, prompt="hi")
        with pytest.raises(openai.AuthenticationError) as unknown:
            await mallory.completions.create(model=MODEL_ID, prompt="hi")

    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert limited.value.code == "rate_limit_exceeded"
    assert "1 requests per minute" in str(limited.value)
    assert unknown.value.code == "invalid_api_key"


async def test_anthropics_client(tmp_path: Path) -> None:
    """By `x-api-key`, or as a token."""
    async with (
        server(tmp_path, "requests_per_minute = 2") as port,
        anthropic.DefaultAsyncHttpxClient(trust_env=False) as http,
    ):
        url = f"http://127.0.0.1:{port}"
        make = partial(anthropic.AsyncAnthropic, base_url=url, http_client=http, max_retries=0)
        alice, token, mallory = make(api_key=key_of("alice")), make(auth_token=key_of("alice")), make(api_key="guess")

        for client in (alice, token):
            await client.messages.create(model=MODEL_ID, max_tokens=9, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.RateLimitError, match="2 requests per minute"):
            await alice.messages.create(model=MODEL_ID, max_tokens=9, messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(anthropic.AuthenticationError, match="not known here"):
            await mallory.messages.create(model=MODEL_ID, max_tokens=9, messages=[{"role": "user", "content": "hi"}])
