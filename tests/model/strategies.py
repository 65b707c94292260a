"""Hypothesis strategies for the model's tests."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy


def chunkings(total: int) -> SearchStrategy[list[int]]:
    """Ways to cut `total` tokens into one or more steps."""
    cuts = st.sets(st.integers(1, total - 1), max_size=12).map(sorted)
    return cuts.map(lambda at: [end - start for start, end in zip([0, *at], [*at, total], strict=True)])
