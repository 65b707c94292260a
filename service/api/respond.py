"""The whole path of a generation request, in three steps: read the body, make a job of it, answer.

A request whose client has gone, streaming or not, queued or running, is cancelled at once wherever it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.api import sse
from service.api.body import read_body
from service.api.choice import Piece
from service.api.disconnect import unless_disconnected
from service.api.errors import failure_of
from service.api.generation import Job, generate
from service.api.logs import RequestRecord, Tally, record_of
from service.api.state import ApiState

Prepare = Callable[[ApiState, bytes, float], Job]
_logger = logging.getLogger(__name__)


async def respond(state: ApiState, request: Request, prepare: Prepare) -> Response:
    """Answer `request`, whose body `prepare` understands. What fails before the first token is an HTTP status."""
    body = await read_body(request, state.max_body_bytes)
    return await unless_disconnected(request.receive, _answer(state, record_of(request.scope), prepare, body))


async def _answer(state: ApiState, record: RequestRecord, prepare: Prepare, body: bytes) -> Response:
    # Parsing, templates and tokenizers take seconds for the largest bodies: the event loop has others to serve.
    job = await asyncio.to_thread(prepare, state, body, record.started_at)
    record.model = state.model_id
    record.tally = tally = Tally(record.started_at, job.num_choices)
    pieces = generate(state, job, tally)
    if not job.stream:
        return JSONResponse(job.renderer.body([piece async for piece in pieces], tally))
    first = await anext(pieces)
    return sse.EventStream(_events(first, pieces, job, tally, record))


async def _events(
    first: Piece, rest: AsyncGenerator[Piece, None], job: Job, tally: Tally, record: RequestRecord
) -> AsyncGenerator[bytes, None]:
    """The events of a stream. The status is sent by now, so a failure is an event too; `[DONE]` always comes last."""
    async with aclosing(rest):
        try:
            yield job.renderer.events(first)
            async for piece in rest:
                if events := job.renderer.events(piece):
                    yield events
            yield job.renderer.closing(tally)
        except Exception as error:
            _logger.exception("request %s failed after its first token", record.request_id)
            failure = failure_of(error)
            record.error = failure.code
            yield sse.event(failure.envelope)
        yield sse.DONE
