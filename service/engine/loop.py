"""The engine as a `Backend`: one thread owns the core; asyncio hands it requests and reads their events.

The thread sleeps while there is nothing to do and is woken by a command; between two steps it takes in all commands.
After a step, each event loop gets one callback with the events of all its streams. Computations beside generation get
one bounded piece of the thread between two steps (`service.engine.aside`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from service.engine.admission import Admission
from service.engine.aside import Asides, Pieces, T
from service.engine.config import LoopConfig
from service.engine.core import EngineCore
from service.engine.live_requests import LiveRequests
from service.engine.observer import GuardedObserver, Observer
from service.engine.stream import RequestStream, push_all
from service.errors import EngineError, UnavailableError
from service.health import Health, state_of
from service.types import Claim, FinishReason, GenerateRequest, TokenEvent

logger = logging.getLogger(__name__)


class EngineBackend:
    """Implements `Backend`. `start` first; then `drain` or `close`, once and for all."""

    def __init__(
        self,
        core: EngineCore,
        config: LoopConfig,
        *,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._core = core
        self._config = config
        self._observe = GuardedObserver(observer)
        self._clock = clock
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._changed = threading.Condition()  # guards what follows
        self._commands: list[Callable[[], None]] = []
        self._live = LiveRequests(Admission.of(core.room, config, core.config.queue_timeout_s, clock))
        self._asides = Asides()
        self._refusal: str | None = "The engine has not started."
        self._failure: str | None = None
        self._is_stopping = False
        self._busy_since: float | None = None  # when the present step began, or work began to wait; None when idle

    @property
    def max_model_len(self) -> int:
        return self._core.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._core.vocab_size

    def start(self) -> None:
        self._refusal = None
        self._thread.start()

    def generate(self, request: GenerateRequest) -> RequestStream:
        """See `Backend.generate`. To be called on a running event loop, which then gets the events."""
        self._core.check(request)
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._refusal is not None:
                raise UnavailableError(self._refusal)
            self._live.check(request)
            stream = RequestStream(request, loop, self._abort)
            self._live.add(request, stream)
            self._command(partial(self._core.add, request))
        return stream

    def check_room(self, claim: Claim) -> None:
        """See `Backend.check_room`."""
        with self._changed:
            if self._refusal is not None:
                raise UnavailableError(self._refusal)
            self._live.admission.check(claim)

    def compute(self, pieces: Pieces[T]) -> asyncio.Future[T]:
        """The result of a computation beside generation, for the running event loop; cancelling it ends the work.

        Raises OverloadedError or UnavailableError; the future fails with EngineError or UnavailableError.
        """
        with self._changed:
            if self._refusal is not None:
                raise UnavailableError(self._refusal)
            future = self._asides.add(pieces)
            self._wake()
        return future

    def health(self) -> Health:
        with self._changed:
            refusal, failure, busy_since = self._refusal, self._failure, self._busy_since
            wait_s, is_overloaded = self._live.admission.wait_s(Claim()), self._live.admission.is_overloaded()
        age_s = 0.0 if busy_since is None else max(0.0, self._clock() - busy_since)
        if failure is None and age_s > self._config.heartbeat_timeout_s:
            failure = f"The engine has been silent for {age_s:.0f} s."
        return Health(
            state=state_of(failure, refusal, has_started=bool(self._thread.ident), is_overloaded=is_overloaded),
            reason=failure or refusal or "ok",
            num_waiting=self._live.num_waiting,
            num_running=self._live.num_running,
            wait_s=wait_s,
            heartbeat_age_s=age_s,
        )

    def prompts_ahead(self) -> tuple[float, float]:
        """Prompt tokens still to be computed, of all that is accepted by now, and those of a mean request."""
        with self._changed:
            return self._live.admission.num_prefill_left, self._live.admission.forecast.mean_prompt_tokens

    async def drain(self, timeout_s: float) -> bool:
        """Admit nothing more, finish what is accepted, then stop; whether all of it finished within `timeout_s`.

        What did not finish is aborted, and its reader told.
        """
        self._refuse("The server is draining: it finishes what it has and accepts nothing new.")
        return await asyncio.to_thread(self._drain, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop after the present step, or without it after `timeout_s`. Unfinished requests are aborted."""
        self._refuse("The server is shutting down.")
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.error("the engine is stuck in a step and was left behind")
        self._end_live(FinishReason.ABORT, "The server is shutting down.")

    def _command(self, command: Callable[[], None]) -> None:
        """Have the engine thread run `command` before its next step."""
        with self._changed:
            self._commands.append(command)
            self._wake()

    def _wake(self) -> None:
        if self._busy_since is None:
            self._busy_since = self._clock()
        self._changed.notify_all()

    def _abort(self, request_id: str) -> None:
        self._command(partial(self._core.abort, request_id))

    def _refuse(self, reason: str) -> None:
        with self._changed:
            self._refusal = self._refusal or reason

    def _drain(self, timeout_s: float) -> bool:
        with self._changed:
            has_drained = self._changed.wait_for(lambda: not self._live and not self._asides, timeout_s)
        self.close()
        return has_drained and self._failure is None

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._core.has_work:
                    self._step()
                self._asides.run_piece()
        except BaseException:
            logger.exception("the engine has failed")
            with self._changed:
                self._failure = self._refusal = "The engine has failed; this server must be restarted."
            self._end_live(FinishReason.ERROR, self._failure)

    def _take_commands(self) -> bool:
        """Wait for something to do and run the commands; False when it is time to stop."""
        with self._changed:
            while not (self._commands or self._core.has_work or self._asides or self._is_stopping):
                self._busy_since = None
                self._changed.notify_all()  # a drain may wait for the last aside
                self._changed.wait()
            self._busy_since = None if self._is_stopping else self._clock()
            commands, self._commands = self._commands, []
        if self._is_stopping:
            return False
        for command in commands:
            command()
        return True

    def _step(self) -> None:
        events, stats = self._core.step()
        # First the books, then the news: who is told of an end and asks again at once finds the place free.
        with self._changed:
            told = self._live.settle(events, stats)
            stats = self._live.admission.completed(stats)
            self._changed.notify_all()
        self._deliver(told)
        self._observe(stats)
        if not self._core.has_work:
            self._core.check_integrity()

    def _deliver(self, told: list[tuple[RequestStream, TokenEvent]]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[RequestStream, TokenEvent]]] = {}
        for stream, event in told:
            by_loop.setdefault(stream.loop, []).append((stream, event))
        for loop, pairs in by_loop.items():
            self._call(loop, partial(push_all, pairs), [stream.request_id for stream, _ in pairs])

    def _call(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None], request_ids: list[str]) -> None:
        try:
            loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: nobody can read these streams any more
            for request_id in request_ids:
                self._abort(request_id)

    def _end_live(self, reason: FinishReason, error: str) -> None:
        """Nothing more comes from the core: end every stream that still waits for something."""
        with self._changed:
            streams = self._live.clear()
            self._asides.fail(EngineError(error) if reason is FinishReason.ERROR else UnavailableError(error))
            self._changed.notify_all()
        for stream in streams:
            self._call(stream.loop, partial(stream.end, reason, error), [])
