"""Small logits and sequences to sample from."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from service.engine.sampler import sample
from service.engine.sequence import Sequence
from service.types import SamplingParams
from tests.engine.fakes import request

VOCAB_SIZE = 12


def sequence(
    *output: int, prompt: tuple[int, ...] = (0,), eos: frozenset[int] = frozenset(), **sampling: Any
) -> Sequence:
    """A sequence that has generated `output`."""
    params = {"seed": 0, "max_tokens": 100_000, **sampling}
    seq = Sequence.of(request(*prompt, **params), 0, fresh_seed=0, eos_token_ids=eos)
    seq.token_ids += output
    return seq


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def probabilities(*values: float) -> Tensor:
    """Logits whose softmax is `values`."""
    return row(*values).log()


def drawn(logits: Tensor, num_draws: int = 2000, **sampling: Any) -> Counter[int]:
    """How often each token comes, over as many seeds."""
    rows = [sequence(seed=seed, **{"temperature": 1.0, **sampling}) for seed in range(num_draws)]
    return Counter(token_id for result in sample(logits.expand(num_draws, -1), rows) for token_id in result.token_ids)


def token(logits: Tensor, seq: Sequence) -> int | None:
    [result] = sample(logits[None], [seq])
    return result.token_ids[0] if result.token_ids else None


logit_rows = st.lists(
    st.integers(-8, 8).map(lambda x: x / 2) | st.just(-math.inf), min_size=VOCAB_SIZE, max_size=VOCAB_SIZE
).filter(lambda values: max(values) > -math.inf)


def sequence_with(params: SamplingParams) -> Sequence:
    """A sequence with some history under `params`."""
    return Sequence(
        request_id="x",
        index=0,
        sampling=params,
        seed=params.seed or 0,
        stop_token_ids=params.stop_token_ids,
        token_ids=[1, 2, 3, 2],
        num_prompt_tokens=2,
        arrival_at=0.0,
    )
