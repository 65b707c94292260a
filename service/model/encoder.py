"""An encoder (BERT: https://arxiv.org/abs/1810.04805) for embeddings.

    hidden = norm(embedding[token] + position_embedding[position] + token_type_embedding[0])
    each layer:
        hidden = norm(hidden + o(attention(qkv(hidden))))
        hidden = norm(hidden + down(activation(up(hidden))))

The texts of a group lie one after the other, without padding; each attends to itself. T tokens, H heads, D head_dim.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from service.embedding import MAX_INPUT_TOKENS, EmbeddingShape
from service.errors import ModelError
from service.model.activation import gelu, gelu_tanh
from service.model.embedding import EmbeddingModel, Group
from service.model.encoder_config import EncoderConfig, read_encoder_config
from service.model.linear import Linear
from service.model.safetensors_weights import SafetensorsSource, weight_files

# The pooler is for sentence pairs; position_ids is a buffer that old versions of transformers saved.
NOT_USED = re.compile(r"^(bert\.)?(pooler\.|embeddings\.position_ids$)")


class LayerNorm:
    def __init__(self, weights: EncoderWeights, name: str, config: EncoderConfig) -> None:
        self._weight, self._bias = (weights.take(f"{name}.{part}", config.hidden_size) for part in ("weight", "bias"))
        self._eps = config.norm_eps

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class EncoderLayer:
    def __init__(self, weights: EncoderWeights, name: str, config: EncoderConfig) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        query_key_value = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        self._qkv = weights.linear(query_key_value, hidden, hidden)
        self._o = weights.linear([f"{name}.attention.output.dense"], hidden, hidden)
        self._attention_norm = LayerNorm(weights, f"{name}.attention.output.LayerNorm", config)
        self._up = weights.linear([f"{name}.intermediate.dense"], inner, hidden)
        self._down = weights.linear([f"{name}.output.dense"], hidden, inner)
        self._mlp_norm = LayerNorm(weights, f"{name}.output.LayerNorm", config)
        self._activation = gelu if config.activation == "gelu" else gelu_tanh
        self._num_heads = config.num_heads

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """x [T, hidden] -> [T, hidden]; `lengths` are those of the texts."""
        heads = self._qkv(x).view(x.shape[0], 3, self._num_heads, -1)
        attended = torch.cat([_attend(text) for text in torch.split(heads, list(lengths))])
        x = self._attention_norm(x + self._o(attended))
        return self._mlp_norm(x + self._down(self._activation(self._up(x))))


def _attend(heads: Tensor) -> Tensor:
    """heads [n, 3, H, D], the queries, keys and values of one text -> [n, H * D]."""
    query, key, value = heads.permute(1, 2, 0, 3).unsqueeze(1)
    return functional.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)


class EncoderNetwork:
    """Implements `Network`."""

    def __init__(self, config: EncoderConfig, weights: EncoderWeights) -> None:
        self.num_layers = config.num_layers
        hidden = config.hidden_size
        self._embedding = weights.take("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        positions = weights.take("embeddings.position_embeddings.weight", config.max_position, hidden)
        types = weights.take("embeddings.token_type_embeddings.weight", config.num_token_types, hidden)
        self._position_embedding = positions + types[0]
        self._norm = LayerNorm(weights, "embeddings.LayerNorm", config)
        self._layers = [EncoderLayer(weights, f"encoder.layer.{i}", config) for i in range(config.num_layers)]

    @torch.inference_mode()
    def hidden_states(self, group: Group) -> Generator[None, None, Tensor]:
        device = self._embedding.device
        token_ids = torch.tensor([token_id for text in group for token_id in text], device=device)
        positions = torch.tensor([position for text in group for position in range(len(text))], device=device)
        x = functional.embedding(token_ids, self._embedding)
        x = self._norm(x + functional.embedding(positions, self._position_embedding))
        lengths = [len(text) for text in group]
        for layer in self._layers:
            x = layer(x, lengths)
            yield
        return x


class EncoderWeights:
    """The tensors of a directory by their names in `BertModel`, each of which is to be taken once."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._source = SafetensorsSource(weight_files(directory))
        self._directory, self._dtype, self._device = directory, dtype, device
        self._left = {name for name in self._source.names() if not NOT_USED.search(name)}
        self._prefix = "bert." if any(name.startswith("bert.") for name in self._left) else ""

    def take(self, name: str, *shape: int) -> Tensor:
        """Raises ModelError where it is missing or has another shape."""
        name = self._prefix + name
        if name not in self._left:
            raise ModelError(f"{self._directory} lacks the tensor {name}: it is incomplete or of another architecture.")
        if self._source.shape(name) != shape:
            found = list(self._source.shape(name))
            raise ModelError(f"{self._directory}: the tensor {name} has shape {found}, not {list(shape)}.")
        self._left.remove(name)
        return self._source.read(name).to(self._device, self._dtype)

    def linear(self, names: Sequence[str], num_outputs: int, num_inputs: int) -> Linear:
        """One layer of several, each with `num_outputs`."""
        weight = torch.cat([self.take(f"{name}.weight", num_outputs, num_inputs) for name in names])
        return Linear(weight, torch.cat([self.take(f"{name}.bias", num_outputs) for name in names]))

    def check_all_taken(self) -> None:
        """Raises ModelError, naming one that is left."""
        if self._left:
            raise ModelError(
                f"{self._directory} has the tensor {min(self._left)}, which BertModel does not use: running without it"
                " would give wrong vectors."
            )


def load_encoder(directory: Path, *, dtype: torch.dtype, device: torch.device) -> EmbeddingModel:
    """Raises ModelError, ModelNotFoundError or UnsupportedModelError."""
    config = read_encoder_config(directory)
    weights = EncoderWeights(directory, dtype, device)
    network = EncoderNetwork(config, weights)
    weights.check_all_taken()
    shape = EmbeddingShape(
        kind="encoder",
        dimensions=config.hidden_size,
        pooling=config.pooling,
        max_tokens=min(config.max_position, MAX_INPUT_TOKENS),
        vocab_size=config.vocab_size,
    )
    return EmbeddingModel(network, shape)
