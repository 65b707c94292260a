"""Embeddings by the model that an engine runs, computed beside generation: some layers between two steps."""

from __future__ import annotations

import asyncio
from array import array
from typing import Protocol

from service.embedding import EmbeddingRequest, EmbeddingShape
from service.engine.aside import Pieces
from service.engine.loop import EngineBackend


class EmbeddingPieces(Protocol):
    """A model that makes vectors in bounded pieces, on the thread that owns it."""

    @property
    def shape(self) -> EmbeddingShape: ...

    def embed(self, request: EmbeddingRequest) -> Pieces[list[array[float]]]: ...


class EngineEmbedding:
    """Implements `EmbeddingSource`."""

    def __init__(self, model: EmbeddingPieces, backend: EngineBackend) -> None:
        self.shape = model.shape
        self._model = model
        self._backend = backend

    def embed(self, request: EmbeddingRequest) -> asyncio.Future[list[array[float]]]:
        return self._backend.compute(self._model.embed(request))
