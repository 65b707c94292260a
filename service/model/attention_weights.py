"""The attention weights of a model that is being served: softmax(q kᵀ / √D) of every layer and head.

The sequence runs through the model's own layers, with a small cache of its own, and each layer's queries and keys are
read where the attention operator finds them. T tokens, H heads, G KV heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from service.model.attention import SequenceSpan
from service.model.inputs import ModelInputs
from service.model.kv_cache import KVCache, LayerCache
from service.model.transformer import Transformer


@torch.inference_mode()
def attention_weights(model: Transformer, token_ids: Sequence[int]) -> Iterator[Tensor]:
    """The weights [H, T, T] float32 of each layer in turn; what a token may not see is 0. A layer's work per item."""
    config, num_tokens, size = model.config, len(token_ids), model.block_size
    block_table = range(-(-num_tokens // size))
    cache = KVCache(  # one layer's is enough: the next layer overwrites it
        num_layers=1,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        num_blocks=len(block_table),
        block_size=size,
        dtype=model.dtype,
        device=model.device,
    )
    positions = torch.arange(num_tokens, device=model.device)
    age = positions.unsqueeze(1) - positions  # of a key, as a query sees it
    hidden = age < 0
    if config.sliding_window is not None:
        hidden |= age >= config.sliding_window
    seen: list[Tensor] = []

    def watch(query: Tensor, layer: LayerCache) -> None:
        seen.append(_weights(query, layer, hidden))

    inputs = ModelInputs(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=model.device),
        positions=positions,
        slot_mapping=positions,  # blocks in order: slot = position
        logits_rows=positions[:0],
        attention=model.plan([SequenceSpan(num_tokens, num_tokens, block_table)]),
        watch=watch,
    )
    for _ in model.layer_by_layer(inputs, repeat(cache.layers[0], config.num_layers)):
        yield seen.pop()


def _weights(query: Tensor, cache: LayerCache, hidden: Tensor) -> Tensor:
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = cache.values.shape[1]
    keys = cache.keys.permute(1, 2, 0, 3).flatten(2)[:, :, :num_tokens].float()  # [G, D, T]
    queries = query.float().mul(head_dim**-0.5).transpose(0, 1).reshape(num_kv_heads, -1, head_dim)  # [G, H / G * T, D]
    scores = (queries @ keys).view(num_heads, num_tokens, num_tokens)
    return scores.masked_fill_(hidden, float("-inf")).softmax(-1)
