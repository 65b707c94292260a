"""Hypothesis strategies for the engine: few distinct tokens and tight limits, so that everything happens often."""

from __future__ import annotations

from hypothesis import strategies as st

from service.engine.config import EngineConfig
from service.types import SamplingParams


def token_ids(*, max_size: int) -> st.SearchStrategy[list[int]]:
    """Prompts that often share a prefix."""
    return st.lists(st.integers(0, 1), min_size=1, max_size=max_size)


@st.composite
def engine_configs(draw: st.DrawFn) -> EngineConfig:
    max_num_seqs = draw(st.integers(1, 4))
    return EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.integers(max_num_seqs, max_num_seqs + 8)),
        prefix_caching=draw(st.booleans()),
        num_speculative_tokens=draw(st.sampled_from([0, 1, 4])),
    )


@st.composite
def sampling_params(draw: st.DrawFn, *, vocab_size: int, max_tokens: int = 4) -> SamplingParams:
    """Any combination of what can be asked of the sampler."""
    ids = st.integers(0, vocab_size - 1)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, max_tokens)),
        temperature=draw(st.sampled_from([0.0, 1e-40, 0.3, 1.0, 2.0])),
        top_k=draw(st.sampled_from([0, 1, 3, vocab_size, vocab_size + 1])),
        top_p=draw(st.sampled_from([1e-9, 0.5, 0.9, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.2, 1.0])),
        repetition_penalty=draw(st.sampled_from([0.5, 1.0, 1.5])),
        presence_penalty=draw(st.sampled_from([-2.0, 0.0, 0.5])),
        frequency_penalty=draw(st.sampled_from([0.0, 1.0])),
        logit_bias=tuple(draw(st.dictionaries(ids, st.sampled_from([-100.0, 1.5, 100.0]), max_size=2)).items()),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        stop_token_ids=draw(st.frozensets(ids, max_size=2)),
        logprobs=draw(st.sampled_from([None, 0, 3, 20])),
    )
