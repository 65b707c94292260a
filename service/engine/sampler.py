"""From logits to tokens.

A row's result depends on nothing but that row: what needs more than an argmax is worked on alone, as one vector, and
its randomness is a hash of (seed, number of the output token). So a request gets the same tokens whatever its
neighbours are, after a preemption, and on another replica. Log probabilities are those of the raw logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from hashlib import blake2b

import torch
from torch import Tensor

from service.engine.constraint import constrain
from service.engine.runner_protocol import SequenceResult
from service.engine.sequence import Sequence
from service.errors import GrammarError
from service.types import MIN_LOGPROB, SamplingParams, TokenLogprob

MIN_TEMPERATURE = 1e-5
"""Below it one token has all the probability in float32: the choice is greedy."""

_WINDOW = 256
_NUM_TOP = 1024


def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[SequenceResult]:
    """The next token of each sequence. `logits` is [R, V] float32, row i of `sequences[i]`; it is not changed.

    A row without a finite maximum (there is a NaN or an infinity, or every token is forbidden) gives an error for its
    sequence alone.
    """
    if not sequences:
        return []
    constrained = constrain(logits, sequences)
    peaks, greedy = argmax(logits)
    results: list[SequenceResult] = []
    for i, (sequence, peak, token_id) in enumerate(zip(sequences, peaks.tolist(), greedy.tolist(), strict=True)):
        if not math.isfinite(peak):
            results.append(SequenceResult(error="The model's logits for the next token are not finite."))
        elif _is_plain(sequence):
            results.append(_result(logits[i], sequence, token_id))
        else:
            row = constrained.get(i, logits[i])
            chosen = row if isinstance(row, GrammarError) else _choose(row, sequence)
            results.append(_result(logits[i], sequence, chosen))
    return results


def _result(row: Tensor, sequence: Sequence, token_id: int | GrammarError | None) -> SequenceResult:
    """`row` are the raw logits; None stands for no token at all."""
    if token_id is None:
        return SequenceResult(error="No token is allowed to come next.")
    if isinstance(token_id, GrammarError):
        return SequenceResult(error=str(token_id))
    num_top = sequence.sampling.logprobs
    return SequenceResult((token_id,), () if num_top is None else (token_logprob(row, token_id, num_top),))


def argmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and its first index, both [R], of each row of [R, V]; a NaN counts as the maximum.

    In two levels, because on CPUs torch vectorises the maximum (of windows) but not the index (within one window).
    """
    num_rows, vocab_size = logits.shape
    if vocab_size <= _WINDOW:
        return torch.max(logits, dim=-1)
    whole = vocab_size - vocab_size % _WINDOW
    peaks = logits[:, :whole].reshape(num_rows, -1, _WINDOW).amax(-1)
    if whole < vocab_size:
        peaks = torch.cat([peaks, logits[:, whole:].amax(-1, keepdim=True)], dim=-1)
    # The last window ends with the row; what it then shares with the window before is less than its maximum.
    starts = (peaks.argmax(-1) * _WINDOW).clamp(max=vocab_size - _WINDOW)
    columns = starts[:, None] + torch.arange(_WINDOW, device=logits.device)
    values, offsets = logits.gather(1, columns).max(-1)
    return values, starts + offsets


def token_logprob(row: Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Natural-log probability of `token_id` under the raw logits `row` [V], and the `num_top` most likely tokens."""
    logprobs = row.log_softmax(-1)
    return TokenLogprob(
        token_id,
        max(MIN_LOGPROB, logprobs[token_id].item()),
        tuple((top, max(MIN_LOGPROB, logprobs[top].item())) for top in _most_likely(row, num_top)),
    )


def _most_likely(row: Tensor, count: int) -> list[int]:
    """The `count` tokens with the largest logits, best first; of equals the lowest id, as in `argmax` (not in topk)."""
    if count == 0:
        return []
    floor = row.topk(min(count, len(row))).values[-1]
    token_ids = (row >= floor).nonzero()[:, 0]
    order = row[token_ids].sort(descending=True, stable=True).indices
    best: list[int] = token_ids[order[:count]].tolist()
    return best


def uniform(seed: int, num_output_tokens: int) -> float:
    """The number in [0, 1) that chooses the output token after `num_output_tokens` others."""
    counter = (seed % 2**64).to_bytes(8, "little") + num_output_tokens.to_bytes(8, "little")
    return (int.from_bytes(blake2b(counter, digest_size=8).digest(), "little") >> 11) / 2**53


def _is_adjusted(sequence: Sequence) -> bool:
    sampling = sequence.sampling
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
        or bool(sampling.logit_bias)
        or bool(sequence.forbidden_token_ids)
    )


def _is_plain(sequence: Sequence) -> bool:
    is_greedy = sequence.sampling.temperature < MIN_TEMPERATURE
    return is_greedy and sequence.matcher is None and not _is_adjusted(sequence)


def _choose(row: Tensor, sequence: Sequence) -> int | None:
    """The next token under all of `sequence.sampling`, or None when every token is forbidden.

    `row` are the logits, constrained where there is a grammar.
    """
    if _is_adjusted(sequence):
        row = _adjust(row, sequence)
    if row.max() == -math.inf:
        return None
    if sequence.sampling.temperature < MIN_TEMPERATURE:
        return int(argmax(row[None])[1])
    return _draw(row, sequence.sampling, uniform(sequence.seed, sequence.num_output_tokens))


def _adjust(row: Tensor, sequence: Sequence) -> Tensor:
    """Penalties, then bias, then what min_tokens forbids."""
    sampling, output = sequence.sampling, sequence.output_token_ids
    row = row.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.token_ids, device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if output and (sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0):
        counts = torch.bincount(torch.tensor(output, device=row.device), minlength=len(row))
        row -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    for token_id, bias in sampling.logit_bias:
        row[token_id] += bias
    if forbidden := list(sequence.forbidden_token_ids):
        row[forbidden] = -math.inf
    return row


def _draw(row: Tensor, sampling: SamplingParams, number: float) -> int:
    """The token at which the cumulative probability, in order of token id, passes `number` in [0, 1)."""
    probs = ((row - row.max()) / sampling.temperature).softmax(-1)
    floor = _floor(probs, sampling)
    if floor is not None:
        probs = probs * (probs >= floor)
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    return int(torch.searchsorted(cumulative, cumulative[-1] * number, right=True))


def _floor(probs: Tensor, sampling: SamplingParams) -> Tensor | None:
    """Tokens of at least this probability are kept; None keeps all. Of equal tokens all are kept, or none.

    top_k, then top_p of what that left, then min_p: each keeps the most probable tokens, so each is a floor.
    """
    floors: list[Tensor] = []
    top_k = sampling.top_k if sampling.top_k < len(probs) else 0
    top = probs.topk(top_k or min(_NUM_TOP, len(probs))).values if top_k or sampling.top_p < 1.0 else probs
    if top_k:
        floors.append(top[-1])
    if sampling.top_p < 1.0:
        cumulative = top.cumsum(-1, dtype=torch.float64)
        mass = sampling.top_p * (cumulative[-1] if top_k else probs.sum(dtype=torch.float64))
        if cumulative[-1] < mass:  # rare, and sorting the vocabulary costs twenty times as much
            top = probs.sort(descending=True).values
            cumulative = top.cumsum(-1, dtype=torch.float64)
        index = torch.searchsorted(cumulative, mass).clamp(max=len(top) - 1)
        floors.append(top[index])
    if sampling.min_p > 0.0:
        floors.append(sampling.min_p * probs.max())
    return torch.stack(floors).max() if floors else None
