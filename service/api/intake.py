"""Bodies that are on their way to become work: bounded in bytes, and in the threads that they keep busy.

However many large bodies come at once, memory stays bounded, and neither the event loop nor the threads of others wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.errors import OverloadedError

T = TypeVar("T")

MAX_HELD_BYTES = 256 << 20
NUM_THREADS = 4
RETRY_AFTER_S = 1.0
BODY_TIMEOUT_S = 60.0


class Intake:
    """Of one process. Bodies of up to `max_body_bytes` are taken in, that come within `body_timeout_s`."""

    def __init__(self, max_body_bytes: int, body_timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._max_held_bytes = max(MAX_HELD_BYTES, max_body_bytes)
        self._num_held_bytes = 0
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="intake")

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The whole body, held until the end of the context.

        Raises HTTPException: 415 when it is declared as another type than JSON, 413 when it is too large, 408 when it
        does not come; and OverloadedError when too much is held already.
        """
        content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise HTTPException(
                415, "Unsupported content type: send JSON with the header Content-Type: application/json."
            )
        body = bytearray()
        try:
            await self._read(request, body)
            yield bytes(body)
        finally:
            self._num_held_bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        try:
            async with asyncio.timeout(self._body_timeout_s):
                async for part in request.stream():
                    body += part
                    self._num_held_bytes += len(part)
                    self._check(len(body))
        except TimeoutError:
            raise HTTPException(408, f"The request body did not arrive within {self._body_timeout_s:g} s.") from None

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_body_bytes:
            raise HTTPException(413, f"The request body is larger than the limit of {self._max_body_bytes} bytes.")
        if self._num_held_bytes > self._max_held_bytes:
            raise OverloadedError(
                "The server is taking in too many large requests. Please retry later.", retry_after_s=RETRY_AFTER_S
            )

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, from a thread: parsing, templates and tokenizers take seconds for the largest bodies."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
