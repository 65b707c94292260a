"""What a network looks like: sizes and choices, whatever file they were read from. No tensors here.

`service.model.hf_config` and `service.model.gguf_config` read a `ModelConfig` from a model's own description.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.errors import ModelError

Activation = Literal["silu", "gelu", "gelu_tanh"]
Norm = Literal["rms", "layer"]

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GPT2LMHeadModel",
)
MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling:
    """Positions divided by `factor`: https://arxiv.org/abs/2306.15595."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, the ones between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """https://arxiv.org/abs/2309.00071. `attention_factor` multiplies cosine and sine."""

    factor: float
    original_max_position: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding over the whole head: https://arxiv.org/abs/2104.09864.

    `has_frequency_factors`: the weights bring divisors of the frequencies (GGUF files of Llama 3.1 and later).
    """

    theta: float
    scaling: RopeScaling | None = None
    has_frequency_factors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer. `rope` None means learned positions; `sliding_window` None means full attention.

    `sliding_window` W lets a token see itself and the W - 1 tokens before it, in every layer.
    Raises ModelError when sizes contradict each other.
    """

    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    norm: Norm
    norm_eps: float
    activation: Activation
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: RopeConfig | None
    tie_word_embeddings: bool
    sliding_window: int | None

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} attention heads cannot be shared by {self.num_kv_heads} KV heads.")
        if self.rope is not None and self.head_dim % 2:
            raise ModelError(f"Rotary positions need an even head size, but the model's is {self.head_dim}.")
        if self.num_layers > MAX_LAYERS:
            raise ModelError(f"The model claims {self.num_layers} layers; at most {MAX_LAYERS} are supported.")

    @property
    def gated_mlp(self) -> bool:
        """silu(gate) * up, then down; else activation(up), then down."""
        return self.activation == "silu"

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.num_kv_heads * self.head_dim
