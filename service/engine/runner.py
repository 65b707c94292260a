"""Runs batches on the real model: a `Batch` becomes tensors, logits become tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.batch import Batch, ScheduledSequence
from service.engine.runner_protocol import SequenceResult
from service.engine.sampler import sample, token_logprob
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
        sampled_rows: list[int] = []
        prompt_logprobs: list[tuple[TokenLogprob, ...]] = []
        row = 0
        for scheduled in batch.scheduled:
            num_scored = len(scheduled.prompt_logprob_positions)
            prompt_logprobs.append(_prompt_logprobs(logits[row : row + num_scored], scheduled))
            row += num_scored
            if scheduled.samples:
                sampled_rows.append(row)
                row += 1
        if len(sampled_rows) != row:
            logits = logits[sampled_rows]
        sampled = iter(sample(logits, [scheduled.sequence for scheduled in batch.scheduled if scheduled.samples]))
        return [
            (next(sampled) if scheduled.samples else SequenceResult())._replace(prompt_logprobs=scores)
            for scheduled, scores in zip(batch.scheduled, prompt_logprobs, strict=True)
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
                rows.append(len(token_ids) - 1)
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
