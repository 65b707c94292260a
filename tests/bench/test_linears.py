"""The walk through all linear layers compares the same layers."""

from __future__ import annotations

from pathlib import Path

import torch

from service.bench.linears import measure, onednn
from service.model.native_linear import NativeWeight
from tests.model.precisions import load_as
from tests.model.tiny_models import configs, random_model, saved


def test_onednn_has_the_same_weights(tmp_path: Path) -> None:
    """Its layers give what ours give, by another way; each contender walks through all of its own."""
    linears = load_as("bfloat16", saved(random_model(configs()["llama-biases"]), tmp_path / "m"), tmp_path).linears
    theirs = onednn(linears)
    assert not any(isinstance(linear.weight, NativeWeight) for linear in theirs)
    for our, their in zip(linears, theirs, strict=True):
        x = torch.randn(3, 96 if our.name.endswith("down") else 64).bfloat16()
        torch.testing.assert_close(our(x), their(x), rtol=2e-2, atol=2e-2)

    found = measure({"ours": linears, "theirs": theirs}, num_rows=2, rounds=1)
    assert list(found) == ["ours", "theirs"]
    assert all(duration > 0 for duration in found.values())
