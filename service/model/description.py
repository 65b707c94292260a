"""What a model's files say of it, read without its weights and without torch."""

from __future__ import annotations

from pathlib import Path

from service.gguf_header import map_gguf, read_header
from service.json_object import read_json_object
from service.model.architecture import ModelConfig
from service.model.gguf_config import config_from_gguf
from service.model.hf_config import config_from_hf


def read_config(path: Path) -> ModelConfig:
    """Of a Hugging Face directory or a GGUF file. Raises ModelError, ModelNotFoundError or UnsupportedModelError."""
    if path.is_dir():
        return config_from_hf(read_json_object(path / "config.json"))
    with map_gguf(path) as data:
        header = read_header(data, path)
    return config_from_gguf(header.metadata, header.tensors.keys())
