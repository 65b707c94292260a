"""Loading: what is asked for and cannot be had is one sentence; what is loaded can be shared."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from service.errors import ModelError, ModelNotFoundError, StartupError
from service.model.loader import load_model, prepare_portable, require_memory
from service.model.prepared import WEIGHTS
from tests.model.tiny_models import configs, random_model, saved


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(random_model(configs()["llama"]), tmp_path / "source")


@pytest.mark.parametrize(
    ("device", "named"),
    [("tpu", "'tpu' is not known"), ("mps", "'mps' is not supported"), ("cuda:99", "no device 'cuda:99'")],
)
def test_devices_that_are_not_there_are_startup_errors(
    directory: Path, tmp_path: Path, device: str, named: str
) -> None:
    """The device asked for is named, before anything is read."""
    with pytest.raises(StartupError, match=named):
        load_model(directory, dtype="auto", device=device, cache_dir=tmp_path)


def test_a_missing_path_and_a_stray_file_are_model_errors(tmp_path: Path) -> None:
    """Neither a path that does not exist nor a file of another kind is tried as a model."""
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        load_model(tmp_path / "nowhere", dtype="auto", device="cpu", cache_dir=tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match="not a GGUF file"):
        load_model(tmp_path / "notes.txt", dtype="auto", device="cpu", cache_dir=tmp_path)


def test_too_little_memory_is_a_startup_error() -> None:
    """The sentence holds what is needed and what there is; unknown memory is no reason to refuse."""
    with pytest.raises(StartupError, match=r"m need 2\.00 GiB of memory on cpu, but only 1\.00 GiB"):
        require_memory(Path("m"), 2 << 30, 1 << 30, "cpu")
    require_memory(Path("m"), 1 << 30, 1 << 30, "cpu")
    require_memory(Path("m"), 1 << 60, None, "cpu")


def test_dtype_auto_is_one_that_the_hardware_computes_in(directory: Path, tmp_path: Path) -> None:
    """`auto` gives bfloat16 or float32; a dtype asked for is obeyed."""
    auto = load_model(directory, dtype="auto", device="cpu", cache_dir=tmp_path)
    assert auto.dtype in (torch.bfloat16, torch.float32)
    assert load_model(directory, dtype="float16", device="cpu", cache_dir=tmp_path).dtype == torch.float16


def test_kv_blocks_take_what_they_say(directory: Path, tmp_path: Path) -> None:
    """`kv_bytes_per_block` is the size of a cache divided by its blocks."""
    model = load_model(directory, dtype="bfloat16", device="cpu", cache_dir=tmp_path, block_size=32)
    layers = model.new_kv_cache(7).layers
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == 7 * model.kv_bytes_per_block


def test_importing_the_model_stays_light() -> None:
    """transformers is for tests, ray for the fleet: neither comes with the model, nor does text or an HTTP server."""
    code = "import json, sys, service.model.loader, service.model.hub; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    loaded = set(json.loads(output))
    assert not loaded & {"transformers", "ray", "fastapi", "pydantic", "tokenizers", "service.text", "service.engine"}


def test_what_is_prepared_for_others_serves_here_read_only(directory: Path, tmp_path: Path) -> None:
    """An image's cache: whatever dtype `auto` turns out to be, the weights are there and no other file is written."""
    prepare_portable(directory, dtype="auto", cache_dir=tmp_path)
    before = {path.name for path in tmp_path.glob("prepared/*/*")}
    num_prepared = len(list(tmp_path.glob("prepared/*/")))
    load_model(directory, dtype="float32", device="cpu", cache_dir=tmp_path)
    load_model(directory, dtype="bfloat16", device="cpu", cache_dir=tmp_path)
    assert before == {WEIGHTS}
    assert len(list(tmp_path.glob("prepared/*/"))) == num_prepared


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="weights are packed by oneDNN")  # type: ignore[no-untyped-call]
def test_packed_weights_go_elsewhere_when_the_cache_takes_none(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside the prepared weights if that can be written, else in a temporary directory, else in every replica."""
    caplog.set_level(logging.INFO)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    prepare_portable(directory, dtype="float32", cache_dir=tmp_path)
    (prepared,) = (path for path in tmp_path.glob("prepared/*") if path.is_dir())
    name = f"packed-{torch.__version__}-{torch.get_num_threads()}.bin"
    (prepared / f"{name}.lock").mkdir()  # nobody, not even root, can open it for writing

    load_model(directory, dtype="float32", device="cpu", cache_dir=tmp_path)
    own = temporary / f"headcount-{os.getuid()}-packed"
    assert [path.name for path in own.glob("*.bin")] == [f"{prepared.name}-{name}"]
    assert own.stat().st_mode & 0o77 == 0
    assert "Packed weights could not be shared" not in caplog.text

    for path in own.iterdir():
        path.unlink()
    own.rmdir()
    own.write_text("in the way")
    load_model(directory, dtype="float32", device="cpu", cache_dir=tmp_path)
    assert "Packed weights could not be shared: every replica keeps its own copy." in caplog.text
