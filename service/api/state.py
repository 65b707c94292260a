"""What the routes need to know: made once at start, passed to `create_app`, never changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from starlette.types import Scope

from service.adapters import AdapterView
from service.api.intake import Intake
from service.api.keys import KeyRing
from service.api.logs import RequestRecord
from service.attention import AttentionSource
from service.backend import Backend, FleetView
from service.embedding import EmbeddingSource
from service.errors import InvalidRequestError, UnknownModelError
from service.metrics.recorder import Recorder
from service.text.tokenizer import Tokenizer
from service.text.tool_format import ToolParser
from service.types import Adapter, GenerateRequest

Clock = Callable[[], float]

MIB = 2**20


class Tracer(Protocol):
    """Is told of every request that has ended, at `ended_at` on the state's clock, and may give it a `trace_id`."""

    def on_request(self, scope: Scope, record: RequestRecord, ended_at: float) -> None: ...

    def flush(self) -> None:
        """Send what has not been sent, within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiState:
    """`model_id` is the name clients ask for, `created_at` a Unix time; `render_metrics` gives body and content type.

    `log_prompts` puts prompts into the request log. `cors_origins` are the web origins whose pages may call this API
    ("*" for any). `tool_parser` names the format of tool calls. `fleet` is there where the whole fleet can be asked
    about, not in a single replica; `tracer` where requests are traced; `attention` where a model can be looked into;
    `embedding` where it makes vectors of texts; `adapters` where it may be asked for with one; `keys` where API keys
    are asked for. `generates` is false where vectors are all that the model makes. `num_replicas` share the limits of
    a tenant.
    `intake` takes bodies in; a client that takes nothing of its answer for `write_timeout_s` counts as gone.
    `clock` is monotonic and the same as the backend's, `wall_clock` gives Unix time; both in seconds.
    """

    backend: Backend
    tokenizer: Tokenizer
    model_id: str
    version: str
    created_at: int
    recorder: Recorder
    render_metrics: Callable[[], tuple[bytes, str]]
    intake: Intake = field(default_factory=lambda: Intake(4 * MIB))
    write_timeout_s: float = 60.0
    log_prompts: bool = False
    cors_origins: tuple[str, ...] = ()
    tool_parser: ToolParser = "auto"
    fleet: FleetView | None = None
    tracer: Tracer | None = None
    attention: AttentionSource | None = None
    embedding: EmbeddingSource | None = None
    adapters: AdapterView | None = None
    keys: KeyRing | None = None
    num_replicas: Callable[[], int] = lambda: 1
    generates: bool = True
    clock: Clock = time.monotonic
    wall_clock: Clock = time.time

    def prompt_text(self, request: GenerateRequest) -> str:
        """The prompt with its special tokens, for the log."""
        return self.tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)

    def adapter_of(self, model: str | None) -> Adapter | None:
        """What the model named `model` has beside the one served here; None for that itself, as for no name.

        It may read files: not for an event loop. Raises UnknownModelError, or UnavailableError.
        """
        if model is None or model == self.model_id:
            return None
        adapter = None if self.adapters is None else self.adapters.find(model)
        if adapter is None:
            raise UnknownModelError(
                f"The model '{model[:100]}' does not exist. The model served here is '{self.model_id}'.", param="model"
            )
        return adapter

    def check_has_no_adapter(self, model: str | None) -> None:
        """Raise InvalidRequestError if `model` is an adapter, or what `adapter_of` raises."""
        if self.adapter_of(model) is not None:
            raise InvalidRequestError(
                f"The adapter '{model}' generates text, and nothing else: ask for '{self.model_id}'.", param="model"
            )

    def name_of(self, request: GenerateRequest) -> str:
        """The model that `request` asks for."""
        return self.model_id if request.adapter is None else request.adapter.name

    def check_generates(self) -> None:
        """Raise InvalidRequestError unless the model generates text."""
        if not self.generates:
            raise InvalidRequestError(
                f"The model '{self.model_id}' gives embeddings, not text: use /v1/embeddings.", param="model"
            )
