"""The network: a decoder-only transformer over the paged KV cache, for inference only.

    hidden = embedding[token]                       (+ position_embedding[position] with learned positions)
    each layer:
        hidden += o(attention(rotate(qkv(norm(hidden)))))
        hidden += mlp(norm(hidden))
    logits = lm_head(norm(hidden))

The residual is kept apart from the last block's output (`delta`): the norm that follows adds one to the other in the
same pass. T tokens, H heads, G KV heads (G divides H, each serves H / G heads), D head_dim. Every operator computes a
token's result with the same bits whatever tokens are beside it (P1). Names of weights: `service.model.recipe`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from service.model.activation import gelu, gelu_tanh
from service.model.architecture import ModelConfig
from service.model.attention import SequenceSpan
from service.model.inputs import ModelInputs
from service.model.kv_cache import KVCache, LayerCache
from service.model.linear import Additions, Linear
from service.model.norm import norm
from service.model.ops import Ops
from service.model.rotary import Rotary

Weights = Mapping[str, Tensor]
Linears = Mapping[str, Linear]
Rotation = tuple[Tensor, Tensor] | None


class MultiHeadAttention:
    """Grouped-query attention: https://arxiv.org/abs/2305.13245. With G = H it is the original multi-head attention."""

    def __init__(self, config: ModelConfig, weights: Weights, linears: Linears, prefix: str, ops: Ops) -> None:
        self.qkv = linears[f"{prefix}.qkv"]
        self.o = linears[f"{prefix}.o"]
        self._ops = ops
        self._num_heads, self._head_dim, self._norm_eps = config.num_heads, config.head_dim, config.norm_eps
        self._scale = config.head_dim**-0.5
        self._qk_norm: Tensor | None = None  # [H + G, D]: every query head has the same weight, so has every key head
        if config.qk_norm:
            query, key = weights[f"{prefix}.q_norm.weight"], weights[f"{prefix}.k_norm.weight"]
            self._qk_norm = torch.cat([query.expand(config.num_heads, -1), key.expand(config.num_kv_heads, -1)])

    def __call__(self, x: Tensor, rotation: Rotation, cache: LayerCache, inputs: ModelInputs) -> Tensor:
        """x [T, hidden] -> [T, hidden]; writes the tokens' keys and values into `cache` first."""
        qkv = self.qkv(x, inputs.lora)
        if self._qk_norm is not None:
            heads = qkv.view(x.shape[0], -1, self._head_dim)[:, : self._qk_norm.shape[0]]
            heads.copy_(functional.rms_norm(heads, (self._head_dim,), None, self._norm_eps).mul_(self._qk_norm))
        query = self._ops.rotary_and_cache(qkv, rotation, inputs.slot_mapping, cache, self._num_heads)
        if inputs.watch is not None:
            inputs.watch(query, cache)
        return self.o(self._ops.attention(query, cache, inputs.attention, scale=self._scale), inputs.lora)


class GatedMLP:
    """down(silu(gate(x)) * up(x)): https://arxiv.org/abs/2002.05202. Gate and up are one matrix."""

    def __init__(self, linears: Linears, prefix: str, ops: Ops) -> None:
        self.gate_up = linears[f"{prefix}.gate_up"]
        self.down = linears[f"{prefix}.down"]
        self._ops = ops

    def __call__(self, x: Tensor, lora: Additions | None) -> Tensor:
        return self.down(self._ops.silu_gate(self.gate_up(x, lora)), lora)


class MLP:
    """down(activation(up(x)))."""

    def __init__(self, config: ModelConfig, linears: Linears, prefix: str) -> None:
        self.up = linears[f"{prefix}.up"]
        self.down = linears[f"{prefix}.down"]
        self._activation = gelu if config.activation == "gelu" else gelu_tanh

    def __call__(self, x: Tensor, lora: Additions | None) -> Tensor:
        return self.down(self._activation(self.up(x, lora)), lora)


class Layer:
    """Attention, then MLP, each on the norm of the residual."""

    def __init__(self, config: ModelConfig, weights: Weights, linears: Linears, prefix: str, ops: Ops) -> None:
        self._attention_norm = norm(config, weights, f"{prefix}.attention_norm", ops)
        self.attention = MultiHeadAttention(config, weights, linears, prefix, ops)
        self._mlp_norm = norm(config, weights, f"{prefix}.mlp_norm", ops)
        self.mlp = GatedMLP(linears, prefix, ops) if config.gated_mlp else MLP(config, linears, prefix)

    def __call__(
        self, residual: Tensor, delta: Tensor | None, rotation: Rotation, cache: LayerCache, inputs: ModelInputs
    ) -> Tensor:
        """residual [T, hidden] += delta + attention, in place; returns the MLP's output, not yet added."""
        attended = self.attention(self._attention_norm(residual, delta), rotation, cache, inputs)
        return self.mlp(self._mlp_norm(residual, attended), inputs.lora)


class Transformer:
    """A loaded model. `weights` and `linears` are named as in `service.model.recipe`, of one dtype, on one device.

    `linears` are all that it has, in a fixed order.
    """

    def __init__(self, config: ModelConfig, weights: Weights, linears: Linears, *, ops: Ops, block_size: int) -> None:
        self.config = config
        self.block_size = block_size
        self.ops = ops
        self._embedding = weights["embedding.weight"]
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self._position_embedding = weights.get("position_embedding.weight")
        self._rotary: Rotary | None = None
        if config.rope is not None:
            factors = weights.get("rope_factors.weight")
            self._rotary = Rotary(config.rope, config.head_dim, frequency_factors=factors, device=self.device)
        self.linears = tuple(linears.values())
        self._layers = tuple(Layer(config, weights, linears, f"layers.{i}", ops) for i in range(config.num_layers))
        self._final_norm = norm(config, weights, "final_norm", ops)
        self._lm_head = linears["lm_head"]

    def new_kv_cache(self, num_blocks: int) -> KVCache:
        """An empty cache of `num_blocks` blocks for this model."""
        return KVCache(
            num_layers=self.config.num_layers,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            num_blocks=num_blocks,
            block_size=self.block_size,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def kv_bytes_per_block(self) -> int:
        return KVCache.bytes_per_block(
            num_layers=self.config.num_layers,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            block_size=self.block_size,
            dtype=self.dtype,
        )

    def plan(self, spans: Sequence[SequenceSpan]) -> object:
        """One step's attention, for `ModelInputs.attention`. `spans` lie one after the other in the batch."""
        return self.ops.plan(
            spans, block_size=self.block_size, device=self.device, sliding_window=self.config.sliding_window
        )

    def forward(self, inputs: ModelInputs, kv_cache: KVCache) -> Tensor:
        """Logits [R, vocab_size] float32 of the rows asked for. Keys and values of all T tokens go into the cache."""
        with torch.inference_mode():
            residual, delta = deque(self.layer_by_layer(inputs, kv_cache.layers), maxlen=1).pop()
            if inputs.logits_rows.numel() == 0:
                return residual.new_empty((0, self.config.vocab_size), dtype=torch.float32)
            residual, delta = (each.index_select(0, inputs.logits_rows) for each in (residual, delta))
            return self._lm_head(self.normed(residual, delta)).float()

    def normed(self, residual: Tensor, delta: Tensor) -> Tensor:
        """What the output layer sees of the last layer's result [T, hidden]."""
        return self._final_norm(residual, delta)

    def layer_by_layer(self, inputs: ModelInputs, caches: Iterable[LayerCache]) -> Iterator[tuple[Tensor, Tensor]]:
        """After each layer: the residual, and the layer's output that is not yet added to it. Needs inference mode."""
        residual = functional.embedding(inputs.token_ids, self._embedding)
        if self._position_embedding is not None:
            residual.add_(functional.embedding(inputs.positions, self._position_embedding))
        rotation = None if self._rotary is None else self._rotary(inputs.positions)
        delta: Tensor | None = None
        for layer, cache in zip(self._layers, caches, strict=True):
            delta = layer(residual, delta, rotation, cache, inputs)
            yield residual, delta
