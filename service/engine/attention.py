"""The attention of the model that an engine runs, looked at beside generation: a layer between two steps."""

from __future__ import annotations

import asyncio
from typing import Protocol

from service.attention import AttentionMap, AttentionRequest, AttentionShape
from service.engine.aside import Pieces
from service.engine.loop import EngineBackend


class AttentionPieces(Protocol):
    """A model that maps its attention in bounded pieces, on the thread that owns it."""

    @property
    def shape(self) -> AttentionShape: ...

    def map(self, request: AttentionRequest) -> Pieces[AttentionMap]: ...


class EngineAttention:
    """Implements `AttentionSource`."""

    def __init__(self, model: AttentionPieces, backend: EngineBackend) -> None:
        self.shape = model.shape
        self._model = model
        self._backend = backend

    def look(self, request: AttentionRequest) -> asyncio.Future[AttentionMap]:
        return self._backend.compute(self._model.map(request))
