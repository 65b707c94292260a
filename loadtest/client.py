"""Sends one request and writes down what happened, with the instants at which it happened."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from loadtest.histogram import GapHistogram
from loadtest.records import Outcome, Record
from loadtest.sse import Chunk, EventParser, MalformedStreamError, parse_chunk

Message = dict[str, str]
RETRIED_STATUSES = frozenset({429, 503})
MAX_ERROR_BODY_BYTES = 64 * 1024
MAX_MESSAGE_CHARS = 200
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where requests go and what each carries besides its own prompt and length."""

    url: str  # base, without a trailing slash
    model: str
    api: str  # "chat" or "completions"
    ignore_eos: bool
    extra_body: dict[str, Any]

    @property
    def path(self) -> str:
        return f"{self.url}/v1/chat/completions" if self.api == "chat" else f"{self.url}/v1/completions"

    def body(self, messages: list[Message], output_tokens: int) -> bytes:
        """A greedy, streamed request for `output_tokens` tokens, with usage at the end."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.api == "chat":
            body["messages"] = messages
        else:
            body["prompt"] = "\n".join(message["content"] for message in messages)
        if self.ignore_eos:
            body["ignore_eos"] = True
        return json.dumps({**body, **self.extra_body}).encode()


class Timeline:
    """The run's clock: seconds since `start_at` (monotonic), the same in every worker process."""

    def __init__(self, start_at: float, now: Callable[[], float] = time.monotonic) -> None:
        self.start_at = start_at
        self._now = now

    def now_s(self) -> float:
        return self._now() - self.start_at


@dataclass(frozen=True, slots=True)
class Patience:
    """When (seconds on the timeline) the client gives up, and what that is called."""

    until_s: float
    outcome: Outcome


class Client:
    """Sends requests to one endpoint over one httpx client; `gaps` counts those of requests due after `warmup_s`."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        endpoint: Endpoint,
        timeline: Timeline,
        gaps: GapHistogram,
        warmup_s: float = 0.0,
    ) -> None:
        self._http = http
        self._warmup_s = warmup_s
        self.endpoint = endpoint
        self.timeline = timeline
        self._gaps = gaps

    async def send(
        self, record: Record, body: bytes, *, api_key: str | None, patience: Patience, max_retries: int = 0
    ) -> str:
        """Fill in `record` and return the text that arrived. Never raises for what the server or the network does; a
        cancelled send leaves the record UNFINISHED."""
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        text = ""
        try:
            # The event loop's clock and the timeline are both the monotonic clock; a deadline is a difference of the
            # two.
            async with asyncio.timeout(max(patience.until_s - self.timeline.now_s(), 0)):
                while True:
                    text = await self._attempt(record, body, headers)
                    if not self._will_retry(record, max_retries):
                        return text
                    refused_s, advised_s = self.timeline.now_s(), record.retry_after_s or 0.0
                    await asyncio.sleep(advised_s)
                    record.retry_slack_s = self.timeline.now_s() - refused_s - advised_s
        except TimeoutError:
            record.outcome, record.end_s = patience.outcome, self.timeline.now_s()
        return text

    def _will_retry(self, record: Record, max_retries: int) -> bool:
        is_refused = record.outcome is Outcome.HTTP and record.status in RETRIED_STATUSES
        return is_refused and record.retry_after_s is not None and record.attempts <= max_retries

    async def _attempt(self, record: Record, body: bytes, headers: dict[str, str]) -> str:
        record.attempts += 1
        record.outcome = Outcome.UNFINISHED
        if record.sent_s is None:
            record.sent_s = self.timeline.now_s()
        stream = _Stream(record, self.timeline, self._gaps if record.intended_s >= self._warmup_s else None)
        try:
            async with self._http.stream("POST", self.endpoint.path, content=body, headers=headers) as response:
                record.status = response.status_code
                if response.status_code != httpx.codes.OK:
                    await _refused(record, response)
                else:
                    async for data in response.aiter_raw():
                        stream.feed(data)
                    stream.close()
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            _fail(record, Outcome.CONNECT, error)
        except MalformedStreamError as error:
            _fail(record, Outcome.MALFORMED, error)
        except httpx.RemoteProtocolError as error:
            stream.cut(str(error))
        except httpx.HTTPError as error:
            _fail(record, Outcome.CUT, error)
        record.end_s = self.timeline.now_s()
        return stream.text


class _Stream:
    """One response body as it arrives."""

    def __init__(self, record: Record, timeline: Timeline, gaps: GapHistogram | None) -> None:
        self._record = record
        self._timeline = timeline
        self._gaps = gaps
        self._parser = EventParser()
        self._texts: list[str] = []
        self._is_done = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def feed(self, data: bytes) -> None:
        at_s = self._timeline.now_s()
        for payload in self._parser.feed(data):
            self._take(parse_chunk(payload), at_s)

    def _take(self, chunk: Chunk, at_s: float) -> None:
        record = self._record
        if chunk.is_done:
            self._is_done = True
        if chunk.error is not None:
            record.outcome = Outcome.ERROR_EVENT
            record.message, record.code = _clean(chunk.error), chunk.error_code and _clean(chunk.error_code)
        if chunk.usage is not None:
            record.prompt_tokens = chunk.usage.prompt_tokens
            record.output_tokens = chunk.usage.output_tokens
            record.cached_tokens = chunk.usage.cached_tokens
        record.finish_reason = (chunk.finish_reason and _clean(chunk.finish_reason)) or record.finish_reason
        if chunk.text:
            if record.last_s is None:
                record.first_s = at_s
            elif self._gaps is not None:
                self._gaps.add(record.index, at_s - record.last_s)
            record.last_s = at_s
            record.num_events += 1
            self._texts.append(chunk.text)

    def close(self) -> None:
        """The body has ended in good order: was the stream in it complete?"""
        if self._parser.has_unfinished_event:
            raise MalformedStreamError("the stream ends inside an event")
        if self._record.outcome is Outcome.ERROR_EVENT:
            return
        if self._is_done and self._record.finish_reason is not None:
            self._record.outcome = Outcome.OK
        elif self._record.num_events == 0 and not self._is_done:
            raise MalformedStreamError("the body holds no server-sent events")
        else:
            self.cut("the stream ended without a finish reason and [DONE]")

    def cut(self, message: str) -> None:
        if self._record.outcome is not Outcome.ERROR_EVENT:
            self._record.outcome, self._record.message = Outcome.CUT, _clean(message)


def _fail(record: Record, outcome: Outcome, error: Exception) -> None:
    record.outcome, record.message = outcome, _clean(str(error))


def _clean(text: str) -> str:
    """Short, and without the halves of surrogate pairs that JSON can smuggle in and no file can hold."""
    return text[:MAX_MESSAGE_CHARS].encode(errors="replace").decode()


async def _refused(record: Record, response: httpx.Response) -> None:
    """A status other than 200: keep its error envelope's code and message, and what it says about coming back."""
    body = b""
    async for data in response.aiter_raw():
        body += data
        if len(body) > MAX_ERROR_BODY_BYTES:
            break
    record.outcome = Outcome.HTTP
    record.retry_after_s = retry_after_s(response.headers)
    record.message = body[:MAX_MESSAGE_CHARS].decode(errors="replace")
    try:
        error = json.loads(body)["error"]
        code = error.get("code") or error.get("type")
        record.code = None if code is None else _clean(str(code))
        record.message = _clean(str(error.get("message")))
    except (ValueError, KeyError, TypeError, AttributeError):
        record.code = None  # not the envelope: the raw body is the message


def retry_after_s(headers: httpx.Headers, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> float | None:
    """Seconds to wait as the server advises (`retry-after-ms`, else `retry-after` in seconds or as a date), or
    None."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            seconds = _seconds_until(text, now())
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    return None


def _seconds_until(date: str, now: datetime) -> float:
    """Not a number when it is not a date."""
    try:
        return (parsedate_to_datetime(date) - now).total_seconds()
    except (ValueError, TypeError):
        return math.nan
