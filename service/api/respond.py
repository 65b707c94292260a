"""The whole path of a generation request: read the body, make a job of it, generate, send.

A request whose client has gone, streaming or not, queued or running, is cancelled at once wherever it is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from service.api import sse
from service.api.choice import Piece
from service.api.claim import claim_of, claimed
from service.api.disconnect import unless_disconnected, while_read
from service.api.errors import fail
from service.api.generation import Job, generate
from service.api.logs import CLIENT_CLOSED_REQUEST, RequestRecord, Tally, record_of
from service.api.state import ApiState

Prepare = Callable[[ApiState, bytes, float], Job]


class GenerationResponse(Response):
    """Answers one request, whose body `prepare` understands.

    It does all the work itself, rather than being made from the result, so that one task owns what a request holds from
    admission to the last byte. What fails before the first token is raised, and becomes an HTTP status.
    """

    def __init__(self, state: ApiState, prepare: Prepare) -> None:
        super().__init__()
        self._state = state
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, record, claim = self._state, record_of(scope), claim_of(scope)
        state.check_generates()
        state.backend.check_room(claim)
        try:
            async with state.intake.body(Request(scope, receive)) as body:
                prepare = partial(self._prepare, state, body, record.started_at)
                job = await unless_disconnected(receive, state.intake.run(prepare))
            job = replace(job, requests=claimed(job.requests, claim))
            send = while_read(send, state.write_timeout_s)
            await unless_disconnected(receive, self._answer(job, record, scope, receive, send))
        except ClientDisconnect:
            record.client_disconnected = True
            if record.status == CLIENT_CLOSED_REQUEST:
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)

    async def _answer(self, job: Job, record: RequestRecord, scope: Scope, receive: Receive, send: Send) -> None:
        record.model = self._state.name_of(job.requests[0])
        record.request, record.is_stream = job.requests[0], job.stream
        record.tally = tally = job.tally()
        record.reserve(sum(request.most_tokens for request in job.requests))
        if self._state.log_prompts:
            record.prompts = [self._state.prompt_text(request) for request in job.requests]
        async with aclosing(generate(self._state, job, tally)) as pieces:
            if job.stream:
                first = await anext(pieces)
                response: Response = sse.EventStream(_events(first, pieces, job, tally, record))
            else:
                response = JSONResponse(job.renderer.body([piece async for piece in pieces], tally))
            await response(scope, receive, send)


async def _events(
    first: Piece, rest: AsyncGenerator[Piece, None], job: Job, tally: Tally, record: RequestRecord
) -> AsyncGenerator[bytes, None]:
    """The events of a stream. The status is sent by now, so a failure is an event too."""
    try:
        yield job.renderer.events(first, tally)
        async for piece in rest:
            if events := job.renderer.events(piece, tally):
                yield events
        yield job.renderer.closing(tally)
    except Exception as error:  # noqa: BLE001 - whatever it is, the client is told
        yield job.renderer.failing(fail(record, error))
