"""The runner of an engine whose model only makes vectors: it generates nothing."""

from __future__ import annotations

from service.engine.batch import Batch
from service.engine.runner_protocol import SequenceResult

BLOCK_SIZE = 16


class EncoderRunner:
    """Implements `Runner`; every sequence fails. The vectors are computed beside the steps."""

    def __init__(self, *, max_model_len: int, vocab_size: int) -> None:
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.block_size = BLOCK_SIZE
        self.num_blocks = -(-max_model_len // BLOCK_SIZE)
        self.eos_token_ids: frozenset[int] = frozenset()

    def execute(self, batch: Batch) -> list[SequenceResult]:
        return [SequenceResult(error="This model gives embeddings, not text.")] * len(batch.scheduled)
