"""A model's description is read without its weights, and is that of the model that is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from service.errors import ModelNotFoundError
from service.model.description import read_config
from service.model.loader import open_checkpoint
from tests.model.gguf_files import write_gguf
from tests.model.tiny_models import configs, random_model, saved


@pytest.mark.parametrize("form", ["directory", "file"])
def test_it_is_that_of_the_model(form: str, tmp_path: Path) -> None:
    """Of both forms of files."""
    model = random_model(configs()["llama3"])
    path = (
        saved(model, tmp_path / "m")
        if form == "directory"
        else write_gguf(tmp_path / "m.gguf", model, GGMLQuantizationType.F32)
    )
    assert read_config(path) == open_checkpoint(path).config


@pytest.mark.parametrize("name", ["nothing", "nothing.gguf"])
def test_what_is_not_there(name: str, tmp_path: Path) -> None:
    """Is said so."""
    with pytest.raises(ModelNotFoundError):
        read_config(tmp_path / name)


def test_it_needs_no_torch() -> None:
    """Neither does anything else that answers while no replica is there."""
    program = (
        "import sys, service.model.description, service.api.app, service.assembly; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
