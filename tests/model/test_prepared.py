"""Prepared weights are written once, whatever happens meanwhile, and shared as clean pages of one file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.errors import ModelError, StartupError
from service.model.loader import open_checkpoint
from service.model.prepared import WEIGHTS, map_weights, prepare
from service.model.recipe import Recipe
from service.model.storage import filling, require_space
from service.model.stored import Quantization, stored_weights
from service.model.weights import Checkpoint, TensorSource
from tests.model.gguf_files import write_gguf
from tests.model.tiny_models import configs, random_model, saved

F32, BF16 = torch.float32, torch.bfloat16
QUANTIZATIONS: tuple[Quantization, ...] = ("none", "int8", "int4")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return saved(random_model(configs()["llama"]), tmp_path / "source")


class CountingSource:
    """Counts reads, and fails at one of them if told to."""

    def __init__(self, source: TensorSource, fail_at: int | None = None) -> None:
        self.names, self.shape, self.read_groups = source.names, source.shape, source.read_groups
        self._source, self._fail_at = source, fail_at
        self.num_reads = 0

    def read(self, name: str) -> Tensor:
        self.num_reads += 1
        if self.num_reads == self._fail_at:
            raise ModelError("the disk is gone")
        return self._source.read(name)


def counting(directory: Path, fail_at: int | None = None) -> tuple[Checkpoint, CountingSource]:
    checkpoint = open_checkpoint(directory)
    source = CountingSource(checkpoint.source, fail_at)
    recipe: Recipe = checkpoint.recipe
    return Checkpoint(config=checkpoint.config, source=source, recipe=recipe, files=checkpoint.files), source


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_mapped_weights_are_the_checkpoints(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """What is mapped is, bit for bit and name for name, what the checkpoint fuses."""
    checkpoint = open_checkpoint(saved(random_model(configs()[name]), tmp_path / "source"))
    mapped = map_weights(prepare(checkpoint, dtype=dtype, quantization="none", cache_dir=tmp_path))
    stored = stored_weights(checkpoint, dtype, "none")
    expected = {key: weight.read(checkpoint.source) for key, weight in stored.items()}
    assert mapped.keys() == expected.keys()
    assert all(torch.equal(mapped[key], expected[key]) for key in expected)
    assert {weight.dtype for weight in stored.values()} == {dtype}
    assert sum(tensor.nbytes for tensor in mapped.values()) == sum(weight.num_bytes for weight in stored.values())


def test_frequency_factors_stay_float32(tmp_path: Path) -> None:
    """Rope's divisors keep their precision, and their alignment, in a 16-bit model."""
    factors = torch.linspace(1, 8, 8)
    path = write_gguf(tmp_path / "m.gguf", random_model(configs()["llama"]), extra={"rope_freqs.weight": factors})
    mapped = map_weights(prepare(open_checkpoint(path), dtype=BF16, quantization="none", cache_dir=tmp_path))
    assert torch.equal(mapped["rope_factors.weight"], factors)


def test_weights_are_prepared_once(directory: Path, tmp_path: Path) -> None:
    """A second preparation reads nothing; another dtype, quantization or a changed source is another artefact."""
    checkpoint, source = counting(directory)
    first = prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path)
    num_reads = source.num_reads
    assert num_reads > 0
    assert prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path) == first
    assert source.num_reads == num_reads
    prepared = [prepare(checkpoint, dtype=BF16, quantization=each, cache_dir=tmp_path) for each in QUANTIZATIONS]
    assert len({first, *prepared}) == 4
    os.utime(directory / "model.safetensors", (1, 1))
    changed = prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path)
    assert changed != first
    os.utime(directory / "model.safetensors", (1.9, 1.9))  # image layers and archives cut times to seconds
    assert prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path) == changed


def test_replicas_that_start_together_prepare_once(directory: Path, tmp_path: Path) -> None:
    """Of several preparations at the same time one does the work and the others wait for it."""
    pairs = [counting(directory) for _ in range(4)]
    gate = threading.Barrier(len(pairs))

    def start(checkpoint: Checkpoint) -> None:
        gate.wait()
        prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path)

    threads = [threading.Thread(target=start, args=(checkpoint,)) for checkpoint, _ in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(source.num_reads > 0 for _, source in pairs) == [False, False, False, True]


def test_a_failed_preparation_leaves_nothing(directory: Path, tmp_path: Path) -> None:
    """A preparation that fails half way publishes nothing, and the next one succeeds; so it is after a kill."""
    broken, _ = counting(directory, fail_at=5)
    with pytest.raises(ModelError, match="the disk is gone"):
        prepare(broken, dtype=F32, quantization="none", cache_dir=tmp_path)
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]
    checkpoint = open_checkpoint(directory)
    target = prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path / "other").name
    leftover = tmp_path / "prepared" / f"{target}.partial"
    leftover.mkdir()
    (leftover / WEIGHTS).write_bytes(b"half")
    assert map_weights(prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path))


def test_a_cache_filled_beforehand_may_be_read_only(directory: Path, tmp_path: Path) -> None:
    """What is already prepared is found without a lock or anything else being written."""
    checkpoint = open_checkpoint(directory)
    first = prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path)
    for lock in (tmp_path / "prepared").glob("*.lock"):
        lock.unlink()
    before = sorted((tmp_path / "prepared").rglob("*"))
    assert prepare(checkpoint, dtype=F32, quantization="none", cache_dir=tmp_path) == first
    assert sorted((tmp_path / "prepared").rglob("*")) == before


def test_damaged_prepared_weights_are_named(directory: Path, tmp_path: Path) -> None:
    """A prepared file that was tampered with says which directory to delete."""
    prepared = prepare(open_checkpoint(directory), dtype=F32, quantization="none", cache_dir=tmp_path)
    (prepared / WEIGHTS).write_bytes(b"junk")
    with pytest.raises(ModelError, match=f"{prepared.name}.*delete"):
        map_weights(prepared)


def test_a_full_disk_and_an_unusable_cache_are_startup_errors(tmp_path: Path) -> None:
    """Too little room is found out before anything is written, with both numbers in the sentence."""
    with pytest.raises(StartupError, match=r"needs 1073741824\.00 GiB of free disk, but has \d+\.\d\d GiB"):
        require_space(tmp_path, 2**60)
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="cannot be used"), filling(tmp_path / "file" / "x", 1):
        pass


def smaps(path: Path) -> Iterator[dict[str, int]]:
    """/proc/self/smaps: the counters (kB) of each mapping of `path`."""
    counters: dict[str, int] | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, *rest = line.split()
        if not head.endswith(":"):
            if counters:
                yield counters
            counters = {} if line.endswith(str(path)) else None
        elif counters is not None and rest[-1] == "kB":
            counters[head.removesuffix(":")] = int(rest[0])


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what its mappings hold")
def test_mapped_weights_are_pages_of_the_file(directory: Path, tmp_path: Path) -> None:
    """Using the weights brings in pages of the file and no private copies, so replicas share them."""
    prepared = prepare(open_checkpoint(directory), dtype=F32, quantization="none", cache_dir=tmp_path)
    weights = map_weights(prepared)
    assert sum(float(tensor.double().sum()) for tensor in weights.values()) != 0
    mappings = list(smaps(prepared / WEIGHTS))
    assert sum(counters["Rss"] for counters in mappings) * 1024 >= sum(tensor.nbytes for tensor in weights.values())
    assert sum(counters["Anonymous"] for counters in mappings) == 0
