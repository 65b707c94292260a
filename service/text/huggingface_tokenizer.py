"""The tokenizer of a Hugging Face directory: `tokenizer.json` and the files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer as Backend

from service.errors import ModelError, ModelNotFoundError
from service.json_object import read_json_object
from service.text.chat_template import ChatTemplate
from service.text.parts import TokenizerParts

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def read_huggingface_tokenizer(directory: Path) -> TokenizerParts:
    """Raises ModelNotFoundError (no `tokenizer.json`) or ModelError (a file is malformed)."""
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ModelNotFoundError(f"There is no {file}: the model needs its tokenizer in that format.")
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{file} cannot be read: {error}.") from error
    config = _read_json(directory / "tokenizer_config.json")
    special_tokens = {name: text for name in _SPECIAL_NAMES if (text := _token_content(config.get(name))) is not None}
    source = _chat_template_source(directory, config)
    return TokenizerParts(
        backend=backend,
        bos_token_id=backend.token_to_id(special_tokens.get("bos_token", "")),
        eos_token_ids=frozenset(_eos_token_ids(directory, backend, special_tokens.get("eos_token", ""))),
        chat_template=ChatTemplate(source, special_tokens=special_tokens) if source else None,
    )


def _read_json(file: Path) -> dict[str, object]:
    """The object in `file`; empty when there is no such file."""
    return read_json_object(file) if file.is_file() else {}


def _token_content(token: object) -> str | None:
    """A special token is a string, an object with its `content`, or null."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _eos_token_ids(directory: Path, backend: Backend, eos_token: str) -> Iterator[int]:
    """Chat models end a turn with another token than a text: any that one of the files names ends a generation."""
    token_id = backend.token_to_id(eos_token)
    if token_id is not None:
        yield token_id
    for name in ("generation_config.json", "config.json"):
        declared = _read_json(directory / name).get("eos_token_id")
        token_ids = declared if isinstance(declared, list) else [declared]
        yield from (token_id for token_id in token_ids if isinstance(token_id, int))


def _chat_template_source(directory: Path, config: dict[str, object]) -> str | None:
    """`chat_template.jinja`, else the configuration's template, or the one named `default` where it lists several."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file} cannot be read: {error}.") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    return template if isinstance(template, str) else None
