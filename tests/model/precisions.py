"""Every precision that a model can run in on a CPU, each as one word."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from service.model.loader import DtypeName, load_model
from service.model.stored import Quantization
from service.model.transformer import Transformer

Precision = Literal["float32", "bfloat16", "int8", "int4"]
PRECISIONS: list[Precision] = ["float32", "bfloat16", "int8", "int4"]
_MEANING: dict[Precision, tuple[DtypeName, Quantization]] = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("auto", "int8"),
    "int4": ("auto", "int4"),
}


def load_as(precision: Precision, path: Path, cache_dir: Path) -> Transformer:
    dtype, quantization = _MEANING[precision]
    return load_model(path, dtype=dtype, quantization=quantization, device="cpu", cache_dir=cache_dir)
