"""Adapters as PEFT saves them, with random matrices; and a transformers model with one merged into its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from service.model.lora import LoraAdapter
from service.model.lora_files import read_adapter
from service.model.transformer import Transformer

LLAMA_MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
GPT2_MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
PREFIX = "base_model.model."


def write_adapter(
    directory: Path,
    modules: Mapping[str, tuple[int, int]],
    *,
    rank: int = 4,
    alpha: float = 8,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **fields: object,
) -> Path:
    """`modules` maps names to (outputs, inputs); `fields` are added to adapter_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in modules}),
        **fields,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, (outputs, inputs) in modules.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = (torch.randn(rank, inputs, generator=generator) * 0.2).to(dtype)
        tensors[f"{PREFIX}{name}.lora_B.weight"] = (torch.randn(outputs, rank, generator=generator) * 0.2).to(dtype)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def modules_of(model: PreTrainedModel, kinds: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """The modules of `model` that can be adapted, or those of these `kinds`, with their (outputs, inputs)."""
    is_gpt2 = model.config.model_type == "gpt2"
    wanted = tuple(kinds or (GPT2_MODULES if is_gpt2 else LLAMA_MODULES))
    found: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        if module.endswith(wanted) and parameter.dim() == 2:
            outputs, inputs = reversed(parameter.shape) if is_gpt2 else parameter.shape
            found[module] = (outputs, inputs)
    return found


def default_model_modules() -> dict[str, tuple[int, int]]:
    """Those of the default model, SmolLM2-135M: 30 layers, 576 wide, 9 heads of 64 with 3 for keys and values."""
    shapes = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
    return {
        f"model.layers.{layer}.{module}": shape
        for layer in range(30)
        for module, shape in zip(LLAMA_MODULES, shapes, strict=True)
    }


def merge(model: PreTrainedModel, directory: Path, scale: float) -> None:
    """Add scale · B · A to the weights of `model`: what an adapter means."""
    tensors = load_file(directory / "adapter_model.safetensors")
    with torch.no_grad():
        for name, down in tensors.items():
            if name.endswith(".lora_A.weight"):
                module = model.get_submodule(name.removeprefix(PREFIX).removesuffix(".lora_A.weight"))
                weight = module.weight
                assert isinstance(weight, Tensor)
                added = scale * tensors[name.replace("lora_A", "lora_B")].float() @ down.float()
                weight.add_(added.t() if model.config.model_type == "gpt2" else added)


def read(directory: Path, model: Transformer, name: str = "tuned", max_rank: int = 64) -> LoraAdapter:
    return read_adapter(model, directory, name, max_rank=max_rank)
