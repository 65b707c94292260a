"""One worker's share of the schedule: sends each request when it is due, whatever happens to the others.

Open loop: a slow answer delays nobody's send. Bodies are built before they are due, so that building costs no
lateness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Protocol

from loadtest.client import Client, Message, Patience
from loadtest.prompts import Prompts
from loadtest.records import Outcome, Record
from loadtest.schedule import PlannedRequest
from loadtest.spec import Limits, Tenant

Turns = tuple[PlannedRequest, ...]
GRACE_S = 2.0  # for requests in flight when a run is stopped


class Sink(Protocol):
    """Where a runner reports."""

    def sent(self) -> None:
        """A request goes out now."""

    def finished(self, record: Record) -> None:
        """This record is complete (also that of a request that was never sent)."""

    def verifiable(self, index: int, body: bytes, text: str) -> None:
        """This body was answered by this text and is to be repeated after the run."""


class Runner:
    """Runs conversations until they are done or `stop` is set; what is in flight then has `GRACE_S` to finish."""

    def __init__(
        self,
        client: Client,
        prompts: Prompts,
        tenants: Sequence[Tenant],
        limits: Limits,
        sink: Sink,
        stop: asyncio.Event,
    ) -> None:
        self._client = client
        self._timeline = client.timeline
        self._prompts = prompts
        self._tenants = tenants
        self._keys = [tenant.key() for tenant in tenants]
        self._limits = limits
        self._sink = sink
        self._stop = stop

    async def open_loop(self, conversations: Iterable[Turns]) -> None:
        """Send by the clock."""
        flight = _Flight(self._stop)

        async def feed() -> None:
            for turns in conversations:
                messages = self._first_messages(turns[0])
                await self._sleep_until(turns[0].at_s or 0.0)
                if flight.size < self._limits.max_in_flight:
                    flight.start(self._converse(turns, messages))
                else:
                    self._drop(turns)

        await flight.run(feed())

    async def closed_loop(self, conversations: Iterable[Turns], concurrency: int) -> None:
        """`concurrency` clients take the conversations in order, each starting one when its last is over."""
        flight = _Flight(self._stop)
        queue = iter(conversations)

        async def client() -> None:
            await self._sleep_until(0.0)
            for turns in queue:
                await self._converse(turns, self._first_messages(turns[0]))
                if self._stop.is_set():
                    return

        async def feed() -> None:
            for _ in range(concurrency):
                flight.start(client())

        await flight.run(feed())

    def _first_messages(self, first: PlannedRequest) -> list[Message]:
        return [{"role": "user", "content": self._prompts.text(first)}]

    async def _converse(self, turns: Turns, messages: list[Message]) -> None:
        """The turns of one conversation; after a failure the rest is skipped, for there is no answer to go on from."""
        due_s = self._timeline.now_s() if turns[0].at_s is None else turns[0].at_s
        for number, planned in enumerate(turns):
            if number > 0:
                due_s = self._timeline.now_s() + planned.think_s
                messages.append({"role": "user", "content": self._prompts.text(planned)})
                await self._sleep_until(due_s)
            record = self._new_record(planned, due_s)
            text = await self._send(planned, record, messages)
            if record.outcome is not Outcome.OK or self._stop.is_set():
                self._skip(turns[number + 1 :], due_s)
                return
            messages.append({"role": "assistant", "content": text})

    async def _send(self, planned: PlannedRequest, record: Record, messages: list[Message]) -> str:
        body = self._client.endpoint.body(messages, planned.output_tokens)
        self._sink.sent()
        try:
            text = await self._client.send(
                record,
                body,
                api_key=self._keys[planned.tenant],
                patience=self._patience(planned, record.intended_s),
                max_retries=self._limits.max_retries,
            )
        finally:
            self._sink.finished(record)
        if planned.is_verified and record.outcome is Outcome.OK:
            self._sink.verifiable(planned.index, body, text)
        return text

    def _patience(self, planned: PlannedRequest, due_s: float) -> Patience:
        """The first of: the planned disconnect, the client's deadline, the longest time a request may take."""
        ends = [Patience(due_s + self._limits.timeout_s, Outcome.DEADLINE)]
        if planned.deadline_s is not None:
            ends.append(Patience(due_s + planned.deadline_s, Outcome.DEADLINE))
        if planned.disconnect_after_s is not None:
            ends.append(Patience(due_s + planned.disconnect_after_s, Outcome.DISCONNECTED))
        return min(ends, key=lambda end: end.until_s)

    async def _sleep_until(self, due_s: float) -> None:
        await asyncio.sleep(max(due_s - self._timeline.now_s(), 0))

    def _new_record(self, planned: PlannedRequest, due_s: float, outcome: Outcome = Outcome.UNFINISHED) -> Record:
        return Record(
            index=planned.index,
            tenant=self._tenants[planned.tenant].name,
            conversation=planned.conversation,
            turn=planned.turn,
            intended_s=due_s,
            outcome=outcome,
            # Later turns also carry the history: what they cost is known only from the server's usage.
            planned_prompt_tokens=planned.prompt_tokens if planned.turn == 0 else None,
            planned_output_tokens=planned.output_tokens,
        )

    def _drop(self, turns: Turns) -> None:
        due_s = turns[0].at_s or 0.0
        self._sink.finished(self._new_record(turns[0], due_s, Outcome.DROPPED))
        self._skip(turns[1:], due_s)

    def _skip(self, turns: Turns, due_s: float) -> None:
        for planned in turns:
            self._sink.finished(self._new_record(planned, due_s, Outcome.SKIPPED))


class _Flight:
    """The tasks in flight. An exception in one is a fault of the tester: it stops the run and is raised by `run`."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._tasks: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None

    @property
    def size(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._fault = self._fault or fault
            self._stop.set()

    async def run(self, feed: Coroutine[Any, Any, None]) -> None:
        """Wait for the feeder and for all it started. A stop ends the feeder at once, the rest after `GRACE_S`."""
        stopped = asyncio.create_task(self._stop.wait())
        feeder = asyncio.create_task(feed)
        try:
            await asyncio.wait({feeder, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if feeder.done():
                feeder.result()
            feeder.cancel()
            if self._tasks and not self._stop.is_set():
                landed = asyncio.create_task(asyncio.wait(set(self._tasks)))
                await asyncio.wait({landed, stopped}, return_when=asyncio.FIRST_COMPLETED)
                landed.cancel()
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=GRACE_S)
        finally:
            remaining = {feeder, stopped, *self._tasks}
            for task in remaining:
                task.cancel()
            await asyncio.gather(*remaining, return_exceptions=True)
        if self._fault is not None:
            raise self._fault
