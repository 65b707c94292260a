"""A model's runner from settings: what does not go together is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.config import Settings
from service.errors import ConfigError
from service.model_runner import load_encoder_model


def test_encoders_are_not_quantized() -> None:
    """Before anything is read."""
    with pytest.raises(ConfigError, match="quantization is for models that generate text"):
        load_encoder_model(Settings(quantization="int8"), Path("nowhere"))
