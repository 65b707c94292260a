"""What quantization costs: the measures mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from service.bench.quality import WINDOW_TOKENS, qualities, windows
from tests.model.precisions import load_as
from tests.model.tiny_models import configs, random_model, reference_logits, saved, tokens

TEXT = tokens(300)


def test_measures_of_float32_and_of_itself(tmp_path: Path) -> None:
    """The loss is that of transformers over the windows; a model does not diverge from itself, a rounded one does."""
    reference = random_model(configs()["llama"])
    path = saved(reference, tmp_path / "m")
    exact = load_as("float32", path, tmp_path)
    own, again, rounded = qualities([exact, exact, load_as("int4", path, tmp_path)], TEXT)
    loss = sum(
        float(functional.cross_entropy(reference_logits(reference, part)[:-1], torch.tensor(part[1:]), reduction="sum"))
        for part in (TEXT[:WINDOW_TOKENS], TEXT[WINDOW_TOKENS:])
    )
    assert own.loss == pytest.approx(loss / 298, rel=1e-4)
    assert own == again
    assert (own.divergence, own.agreement) == (0, 1)
    assert 0.001 < rounded.divergence < 0.5
    assert 0.5 < rounded.agreement < 1


@pytest.mark.parametrize("num_tokens", [0, 1, 2, WINDOW_TOKENS, WINDOW_TOKENS + 1, 2 * WINDOW_TOKENS + 5])
def test_windows_cover_the_text(num_tokens: int) -> None:
    """In order and whole, but for a single token at the end, after which nothing follows."""
    text = list(range(num_tokens))
    found = [token for window in windows(text) for token in window]
    assert found == text[: num_tokens - (num_tokens % WINDOW_TOKENS == 1)]
