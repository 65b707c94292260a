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


class Intake:
    """Of one process. Bodies of up to `max_body_bytes` are taken in."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_held_bytes = max(MAX_HELD_BYTES, max_body_bytes)
        self._num_held_bytes = 0
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="intake")

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The whole body, held until the end of the context.

        Raises HTTPException: 415 when it is declared as another type than JSON, 413 when it is too large; and
        OverloadedError when too much is held already.
        """
        content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise HTTPException(
                415, "Unsupported content type: send JSON with the header Content-Type: application/json."
            )
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                self._num_held_bytes += len(part)
                if len(body) > self._max_body_bytes:
                    raise HTTPException(
                        413, f"The request body is larger than the limit of {self._max_body_bytes} bytes."
                    )
                if self._num_held_bytes > self._max_held_bytes:
                    raise OverloadedError(
                        "The server is taking in too many large requests. Please retry later.",
                        retry_after_s=RETRY_AFTER_S,
                    )
            yield bytes(body)
        finally:
            self._num_held_bytes -= len(body)

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, from a thread: parsing, templates and tokenizers take seconds for the largest bodies."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
