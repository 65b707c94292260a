"""A tokenizer of single bytes, a backend that plays scripts, and the application over them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
import tokenizers
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from service.api.app import create_app
from service.api.state import ApiState
from service.errors import HeadcountError
from service.health import Health, HealthState
from service.metrics.recorder import Recorder, ReplicaInfo
from service.text.chat_template import ChatTemplate
from service.text.parts import TokenizerParts
from service.text.tokenizer import Tokenizer
from service.text.vocabulary import byte_alphabet
from service.types import Claim, FinishReason, GenerateRequest, SequenceTimings, TokenEvent, TokenLogprob

END = 256  # <|end|> ends a message and a generation
BEGIN = 257  # <|begin|> comes before a prompt
VOCAB_SIZE = 258
MAX_MODEL_LEN = 256
MODEL_ID = "acme/tiny"

INFO = ReplicaInfo(
    model_name=MODEL_ID,
    max_model_len=MAX_MODEL_LEN,
    num_blocks=16,
    block_size=16,
    cache_dtype="float32",
    prefix_caching=True,
)
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

Json = dict[str, Any]

_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('tools are not for this model') }}{% endif %}"
    "{{ message.role }}:{{ message.content }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

Script = Callable[[GenerateRequest], Iterable[TokenEvent | None]]
"""The events of a request. None stands for waiting until the request is closed."""


def make_tokenizer(*, with_template: bool = True) -> Tokenizer:
    return Tokenizer(make_parts(with_template=with_template))


def make_parts(*, with_template: bool = True) -> TokenizerParts:
    """One token per UTF-8 byte, whose id is the byte."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|begin|>", special=True)])
    backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)])
    template = ChatTemplate(_TEMPLATE, special_tokens={"eos_token": "<|end|>"}) if with_template else None
    return TokenizerParts(backend=backend, bos_token_id=BEGIN, eos_token_ids=frozenset({END}), chat_template=template)


def say(text: str | bytes, *, index: int = 0, finish: FinishReason = FinishReason.STOP) -> Script:
    """Generate `text`, one token per step; the end-of-sequence token comes last when it finishes with STOP."""

    def script(request: GenerateRequest) -> Iterator[TokenEvent]:
        token_ids = [*(text.encode() if isinstance(text, str) else text)]
        if finish is FinishReason.STOP:
            token_ids.append(END)
        for position, token_id in enumerate(token_ids):
            yield step(request, [token_id], index=index, finish=finish if position == len(token_ids) - 1 else None)

    return script


def step(
    request: GenerateRequest, token_ids: Sequence[int], *, index: int = 0, finish: FinishReason | None = None
) -> TokenEvent:
    """What an engine sends for new tokens, with made-up log probabilities where they are asked for."""
    sampling = request.sampling
    with_prompt = index == 0 and sampling.prompt_logprobs is not None
    prompt = request.prompt_token_ids
    return TokenEvent(
        request_id=request.request_id,
        index=index,
        token_ids=tuple(token_ids),
        logprobs=() if sampling.logprobs is None else tuple(logprob(id_, sampling.logprobs) for id_ in token_ids),
        prompt_logprobs=(None, *(logprob(id_, sampling.prompt_logprobs or 0) for id_ in prompt[1:]))
        if with_prompt
        else None,
        finish_reason=finish,
    )


def logprob(token_id: int, num_top: int) -> TokenLogprob:
    return TokenLogprob(token_id, -token_id / 4, tuple((other, -other / 8) for other in range(65, 65 + num_top)))


def tokens(token_ids: Iterable[int]) -> Script:
    """One token per step, and no end."""
    return lambda request: (step(request, [token_id]) for token_id in token_ids)


def wait(_: GenerateRequest) -> Iterator[None]:
    """Never give anything."""
    yield None


def in_turn(*scripts: Script) -> Script:
    """One script after the other."""

    def script(request: GenerateRequest) -> Iterator[TokenEvent | None]:
        for part in scripts:
            yield from part(request)

    return script


class ScriptedStream:
    def __init__(self, events: Iterator[TokenEvent | None], on_close: Callable[[int], None]) -> None:
        self._events = events
        self._on_close = on_close
        self._closed = asyncio.Event()
        self.num_read = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        await asyncio.sleep(0)
        for event in self._events:
            if event is None:
                await self._closed.wait()
                break
            self.num_read += 1
            return event
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._on_close(self.num_read)


class ScriptedBackend:
    """Plays `scripts` to the requests in turn, the last one over and over; raises a script that is an exception.

    It has no room while it has a `refusal`. `requests` are all that were admitted, `claims` who asked for room;
    `closed` is the request id of every stream that was closed.
    """

    max_model_len = MAX_MODEL_LEN
    vocab_size = VOCAB_SIZE

    def __init__(self, *scripts: Script | Exception) -> None:
        self.status = Health(state=HealthState.READY, reason="serving")
        self.refusal: HeadcountError | None = None
        self.play(*scripts or [say("Hello")])

    def play(self, *scripts: Script | Exception) -> None:
        """Begin anew, with these scripts."""
        self._scripts = list(scripts)
        self.requests: list[GenerateRequest] = []
        self.claims: list[Claim] = []
        self.closed: list[str] = []
        self.streams: list[ScriptedStream] = []
        self.changed = asyncio.Event()

    def check_room(self, claim: Claim) -> None:
        self.claims.append(claim)
        if self.refusal is not None:
            raise self.refusal

    def generate(self, request: GenerateRequest) -> ScriptedStream:
        script = self._scripts[0] if len(self._scripts) == 1 else self._scripts.pop(0)
        if isinstance(script, Exception):
            raise script
        self.requests.append(request)
        self.changed.set()
        stream = ScriptedStream(iter(script(request)), lambda _: self._close(request))
        self.streams.append(stream)
        return stream

    def health(self) -> Health:
        return self.status

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at whenever a request is admitted or closed."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def _close(self, request: GenerateRequest) -> None:
        self.closed.append(request.request_id)
        self.changed.set()


def make_state(backend: ScriptedBackend, **changes: object) -> ApiState:
    fields: dict[str, object] = {
        "backend": backend,
        "tokenizer": make_tokenizer(),
        "model_id": MODEL_ID,
        "version": "1.2.3",
        "created_at": 1_700_000_000,
        "recorder": Recorder(INFO, CollectorRegistry()),
        "render_metrics": lambda: (b"up 1\n", "text/plain; version=0.0.4"),
        "clock": lambda: 100.0,
        "wall_clock": lambda: 1_700_000_001.5,
    }
    return ApiState(**{**fields, **changes})  # type: ignore[arg-type]


def client_of(backend: ScriptedBackend, **changes: object) -> httpx.AsyncClient:
    """An HTTP client of the application over `backend`, without a network."""
    return client_for(create_app(make_state(backend, **changes)))


def client_for(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://headcount", trust_env=False)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


async def post(
    path: str, body: Json | bytes, backend: ScriptedBackend | None = None, **changes: object
) -> httpx.Response:
    """The answer to one request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with client_of(backend or ScriptedBackend(), **changes) as client:
        return await client.post(path, content=content)


def complaint(message: str, param: str | None, code: str | None = "invalid_value") -> Json:
    """The body of a 4xx answer."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """The application behind a real server on loopback; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await server.is_up.wait()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


def timed(request: GenerateRequest) -> Iterator[TokenEvent]:
    """Three tokens; it was scheduled half a second after its arrival at 100."""
    yield step(request, [65])
    yield TokenEvent(
        request_id=request.request_id,
        token_ids=(66, 67),
        num_prefix_hit_tokens=1,
        finish_reason=FinishReason.LENGTH,
        timings=SequenceTimings(arrival_at=100, scheduled_at=100.5),
    )
