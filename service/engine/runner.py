"""Runs batches on the real model: a `Batch` becomes tensors, logits become tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from service.engine.batch import Batch, ScheduledSequence
from service.engine.runner_protocol import SequenceResult
from service.engine.sampler import sample, token_logprob
from service.engine.verification import Position, verify
from service.model.attention import SequenceSpan
from service.model.inputs import ModelInputs
from service.model.lora import lora_rows
from service.model.transformer import Transformer
from service.types import TokenLogprob


class ModelRunner:
    """A `Runner` over a `Transformer` and its KV cache of `num_blocks` blocks."""

    def __init__(
        self, model: Transformer, *, num_blocks: int, max_model_len: int, eos_token_ids: frozenset[int]
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = model.block_size
        self.max_model_len = max_model_len
        self.vocab_size = model.config.vocab_size
        self.eos_token_ids = eos_token_ids
        self.model = model
        self._cache = model.new_kv_cache(num_blocks)

    @torch.inference_mode()
    def execute(self, batch: Batch) -> list[SequenceResult]:
        logits = self.model.forward(self._inputs(batch), self._cache)
        first_rows: list[int] = []  # to sample from
        prompt_logprobs: list[tuple[TokenLogprob, ...]] = []
        row = 0
        for scheduled in batch.scheduled:
            num_scored = len(scheduled.prompt_logprob_positions)
            prompt_logprobs.append(_prompt_logprobs(logits[row : row + num_scored], scheduled))
            row += num_scored
            first_rows.append(row)
            row += 1 + len(scheduled.draft_token_ids) if scheduled.samples else 0

        def sample_at(positions: Sequence[Position]) -> list[SequenceResult]:
            rows = [first_rows[each.which] + each.num_accepted for each in positions]
            return sample(logits if len(rows) == row else logits[rows], [each.sequence for each in positions])

        results = verify(batch.scheduled, sample_at)
        return [
            result._replace(prompt_logprobs=scores) for result, scores in zip(results, prompt_logprobs, strict=True)
        ]

    def _inputs(self, batch: Batch) -> ModelInputs:
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        rows: list[int] = []
        spans: list[SequenceSpan] = []
        size = self.block_size
        for scheduled in batch.scheduled:
            first_row = len(token_ids)
            table = scheduled.block_table
            token_ids += scheduled.token_ids
            positions += scheduled.positions
            slots += [table[position // size] * size + position % size for position in scheduled.positions]
            rows += [first_row + position - scheduled.start for position in scheduled.prompt_logprob_positions]
            if scheduled.samples:
                rows += range(len(token_ids) - 1 - len(scheduled.draft_token_ids), len(token_ids))
            spans.append(SequenceSpan(scheduled.num_new_tokens, scheduled.end, table))
        return ModelInputs(
            token_ids=self._tensor(token_ids),
            positions=self._tensor(positions),
            slot_mapping=self._tensor(slots),
            logits_rows=self._tensor(rows),
            attention=self.model.plan(spans),
            lora=lora_rows(
                ((each.sequence.adapter, each.num_new_tokens) for each in batch.scheduled),
                self.model.ops,
                self.model.device,
            ),
        )

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.model.device)


def _prompt_logprobs(logits: Tensor, scheduled: ScheduledSequence) -> tuple[TokenLogprob, ...]:
    """Row i of `logits` predicts the prompt token after the i-th of the chunk's `prompt_logprob_positions`."""
    sequence = scheduled.sequence
    num_top = sequence.sampling.prompt_logprobs or 0
    return tuple(
        token_logprob(row, sequence.token_ids[position + 1], num_top)
        for row, position in zip(logits, scheduled.prompt_logprob_positions, strict=True)
    )
