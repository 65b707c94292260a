"""What a model's files say of it, read without its weights and without torch."""

from __future__ import annotations

from pathlib import Path

from service.gguf_header import map_gguf, read_header
from service.json_object import read_json_object
from service.model.architecture import ModelConfig
from service.model.encoder_config import is_encoder, read_encoder_config
from service.model.gguf_config import config_from_gguf
from service.model.hf_config import config_from_hf


def context_length_of(path: Path) -> int:
    """Most tokens of a sequence. Raises as `read_config`."""
    return (read_encoder_config(path) if is_encoder(path) else read_config(path)).max_position


def read_config(path: Path) -> ModelConfig:
    """A decoder's: of a Hugging Face directory or a GGUF file.

    Raises ModelError, ModelNotFoundError or UnsupportedModelError.
    """
    if path.is_dir():
        return config_from_hf(read_json_object(path / "config.json"))
    with map_gguf(path) as data:
        header = read_header(data, path)
    return config_from_gguf(header.metadata, header.tensors.keys())
