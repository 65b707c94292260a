"""What the engine hands the model for one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from service.model.kv_cache import LayerCache
from service.model.lora import LoraRows

Watch = Callable[[Tensor, LayerCache], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """T new tokens of any number of sequences, one sequence after the other; R of them want logits.

    token_ids, positions (0-based in their sequence) and slot_mapping (KV slot each one writes) are [T] int64;
    logits_rows [R] int64 are indices into the T. `attention` is the step's plan, from `Transformer.plan` with the
    same sequences in the same order, and `lora`, from `service.model.lora`, says which of the T have an adapter.
    `watch`, if any, is shown each layer's rotated queries [T, H, D] in turn, when the cache holds its keys.
    """

    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    logits_rows: Tensor
    attention: object
    lora: LoraRows | None = None
    watch: Watch | None = None
