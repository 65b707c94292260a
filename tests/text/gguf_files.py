"""Tiny GGUF files with nothing but a tokenizer in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gguf import GGUFWriter, TokenType


def write_gguf(
    path: Path, model: str, tokens: Sequence[str], kinds: Sequence[TokenType], keys: Mapping[str, object]
) -> Path:
    """Write `tokenizer.ggml.*`: `keys` are bool, int, str or a list of str or float each."""
    writer = GGUFWriter(path, arch="llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
            case _:
                raise TypeError(name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
