"""What quantization costs in quality: `python -m service.bench.quality [TEXT …]`.

Each text is computed in windows, by every precision. Perplexity is e to the mean of -log p of the tokens that follow;
the divergence is the mean over positions of KL(p ‖ q), p being what float32 says of the same weights and q what the
precision says; agreement is the share of positions where both find the same token most likely.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from service.assembly import load_tokenizer_of
from service.config import Settings, load_settings
from service.model.attention import SequenceSpan
from service.model.hub import resolve_model
from service.model.inputs import ModelInputs
from service.model.loader import DtypeName, load_model
from service.model.stored import Quantization
from service.model.transformer import Transformer

DEFAULT_TEXT = Path(__file__).parents[2] / "LICENSE"
WINDOW_TOKENS = 256
PRECISIONS: tuple[tuple[str, DtypeName, Quantization], ...] = (
    ("float32", "float32", "none"),
    ("bfloat16", "bfloat16", "none"),
    ("int8", "auto", "int8"),
    ("int4", "auto", "int4"),
)


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the tokens of a text."""

    loss: float
    divergence: float
    agreement: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def qualities(models: Sequence[Transformer], token_ids: Sequence[int]) -> list[Quality]:
    """Of each model; the first is what the others are compared with."""
    sums = torch.zeros((len(models), 3), dtype=torch.float64)
    num_predicted = 0
    for window in windows(token_ids):
        following = torch.tensor(window[1:])
        log_probabilities = [log_softmax(model, window)[:-1] for model in models]
        exact = log_probabilities[0]
        for row, found in zip(sums, log_probabilities, strict=True):
            row[0] -= found.gather(1, following.unsqueeze(1)).sum()
            row[1] += (exact.exp() * (exact - found)).sum()
            row[2] += (exact.argmax(1) == found.argmax(1)).sum()
        num_predicted += len(following)
    return [Quality(*means) for means in (sums / num_predicted).tolist()]


def windows(token_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Of WINDOW_TOKENS each, the last perhaps shorter, none of a single token."""
    for start in range(0, len(token_ids) - 1, WINDOW_TOKENS):
        yield token_ids[start : start + WINDOW_TOKENS]


def log_softmax(model: Transformer, token_ids: Sequence[int]) -> Tensor:
    """[T, vocab_size] float32: what `model` expects after each of the T tokens."""
    num_tokens = len(token_ids)
    block_table = range(-(-num_tokens // model.block_size))
    positions = torch.arange(num_tokens)
    inputs = ModelInputs(
        token_ids=torch.tensor(token_ids),
        positions=positions,
        slot_mapping=positions,  # blocks in order: slot = position
        logits_rows=positions,
        attention=model.plan([SequenceSpan(num_tokens, num_tokens, block_table)]),
    )
    return model.forward(inputs, model.new_kv_cache(len(block_table))).log_softmax(1)


def load_precisions(settings: Settings) -> dict[str, Transformer]:
    """The model of `settings` in each precision, on the CPU."""
    path = resolve_model(settings.model, settings.cache_path)
    return {
        name: load_model(path, dtype=dtype, quantization=quantization, device="cpu", cache_dir=settings.cache_path)
        for name, dtype, quantization in PRECISIONS
    }


@click.command()
@click.argument("texts", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(texts: tuple[Path, ...]) -> None:
    """Compare the precisions on TEXTS, by default the licence; HEADCOUNT_* variables choose the model."""
    settings = load_settings(flags={}, environment=os.environ).settings
    tokenizer = load_tokenizer_of(settings)
    models = load_precisions(settings)
    console = Console(width=120)
    for text in texts or (DEFAULT_TEXT,):
        token_ids = tokenizer.encode(text.read_text(), add_special_tokens=False)
        table = Table(
            "precision", "perplexity", "divergence", "agreement", title=f"{text.name}, {len(token_ids)} tokens"
        )
        for name, quality in zip(models, qualities(list(models.values()), token_ids), strict=True):
            cells = f"{quality.perplexity:.3f}", f"{quality.divergence:.5f}", f"{quality.agreement:.1%}"
            table.add_row(name, *cells)
        console.print(table)


if __name__ == "__main__":
    main()
