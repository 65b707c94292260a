"""Reads the JSON files that come with a model, which are outside input."""

from __future__ import annotations

import json
from pathlib import Path

from service.errors import ModelError, ModelNotFoundError


def read_json_object(path: Path) -> dict[str, object]:
    """Raises ModelNotFoundError, or ModelError if `path` cannot be read as JSON (UTF-8) or is no object."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path.parent} has no {path.name}, so it is no Hugging Face model.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return content
