"""What the tester learns of a server before it sends load: is it allowed, is it there, which model, how does it
count tokens."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

import httpx

from loadtest.errors import TargetError
from loadtest.prompts import Vocabulary, calibrate

PROBE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server that may be tested. `url` has no trailing slash and no `/v1`."""

    url: str
    model: str
    server: str | None
    vocabulary: Vocabulary


def check_host(url: str, *, is_other_host_ok: bool) -> str:
    """The base URL, cleaned. Raises TargetError for a host other than this machine unless that was allowed."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise TargetError(f"{url!r} is not a URL: {error}.") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise TargetError(f"{url!r} is not an http or https URL.")
    if not is_other_host_ok and not _is_loopback(parsed.host):
        raise TargetError(
            f"{parsed.host} is not this machine. Load on someone else's server is an attack: if it is yours,"
            " say so with --target-host-ok."
        )
    return str(parsed).rstrip("/").removesuffix("/v1")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def plain_client(api_key: str | None) -> httpx.AsyncClient:
    """For everything but the load: probes, metrics. No proxy is used, whatever the environment says."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return httpx.AsyncClient(headers=headers, timeout=PROBE_TIMEOUT_S, trust_env=False)


async def probe(http: httpx.AsyncClient, url: str, model: str | None, api: str) -> Target:
    """Ask `/v1/models` and `/tokenize`. `model` None takes the first one served. Raises TargetError."""
    try:
        response = await http.get(f"{url}/v1/models")
    except httpx.HTTPError as error:
        raise TargetError(f"No server answers at {url}: {error or type(error).__name__}. Is it started?") from error
    if response.status_code != httpx.codes.OK and model is None:
        raise TargetError(f"{url}/v1/models answers {response.status_code}: give the model's name with --model.")
    if model is None:
        try:
            model = str(response.json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise TargetError(f"{url}/v1/models names no model: give it with --model.") from error
    return Target(url, model, response.headers.get("server"), await _vocabulary(http, url, model, api))


async def _vocabulary(http: httpx.AsyncClient, url: str, model: str, api: str) -> Vocabulary:
    """Calibrated by `/tokenize` where the server offers it."""

    async def count_tokens(text: str) -> int:
        body: dict[str, Any] = {"model": model}
        if api == "chat":
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = text
        response = await http.post(f"{url}/tokenize", json=body)
        return int(response.raise_for_status().json()["count"])

    try:
        return await calibrate(count_tokens)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Vocabulary()
