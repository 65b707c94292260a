"""The default model's weights as its peers read them: all made from the one file that we read."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch

from service.bench.contenders import load_transformers
from service.model.storage import filling

KINDS: Mapping[str, gguf.GGMLQuantizationType] = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}
FILE_TYPES: Mapping[str, gguf.LlamaFileType] = {
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
BYTES_PER_FILE_BYTE = 8  # of 16-bit weights, for files of two bits a weight or more


def gguf_as(source: Path, kind: str, directory: Path) -> Path:
    """`source` with its matrices dequantised and rounded to `kind`, for llama.cpp and OpenVINO."""
    target = directory / kind
    with filling(target, source.stat().st_size * BYTES_PER_FILE_BYTE) as staging:
        if staging is not None:
            _write(gguf.GGUFReader(source), kind, staging / "model.gguf")
    return target / "model.gguf"


def directory_as(source: Path, directory: Path) -> Path:
    """`source` in bfloat16 as a Hugging Face directory, for transformers and vLLM. Raises StartupError."""
    target = directory / "hf-bf16"
    with filling(target, source.stat().st_size * BYTES_PER_FILE_BYTE) as staging:
        if staging is not None:
            model = load_transformers(source, torch.bfloat16)
            model.save_pretrained(staging)
            tokenizers: Any = importlib.import_module("transformers")
            tokenizers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(staging)
    return target


def _write(reader: gguf.GGUFReader, kind: str, path: Path) -> None:
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    assert architecture is not None, "we could not serve it"
    writer = gguf.GGUFWriter(path, architecture.contents())
    ours = (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE, gguf.Keys.General.QUANTIZATION_VERSION)
    for field in reader.fields.values():
        if field.name not in ours and not field.name.startswith("GGUF."):
            kinds = field.types
            inner = kinds[-1] if kinds[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kinds[0], inner)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        target = KINDS[kind] if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, target), raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
