"""Prepared weights: a model's weights as it runs them (fused, packed, in the runtime dtype), written once and mapped
ever after.

    <cache_dir>/prepared/<key>/weights.safetensors

Replicas of a node map the same file, so its pages are in memory once (clean pages of the page cache). The key covers
all that the content depends on: the source files (name, size, modification time in whole seconds, which is what image
layers and archives keep, and samples of what is in them), the dtype, the quantization and LAYOUT_VERSION.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from service.errors import ModelError
from service.model.storage import filling
from service.model.stored import Quantization, StoredWeight, stored_weights
from service.model.weights import Checkpoint, TensorSource

LAYOUT_VERSION = 2  # raise it when names, order, fusing or packing of `stored_weights` change
WEIGHTS = "weights.safetensors"
NUM_SAMPLES, SAMPLE_BYTES = 32, 4096
ALIGNMENT = 64  # bytes: a cache line
DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}


def prepare(checkpoint: Checkpoint, *, dtype: torch.dtype, quantization: Quantization, cache_dir: Path) -> Path:
    """The directory of the prepared weights, made if absent. Raises StartupError if the cache cannot hold it."""
    target = cache_dir / "prepared" / _key(checkpoint, dtype, quantization)
    stored = stored_weights(checkpoint, dtype, quantization)
    with filling(target, sum(weight.num_bytes for weight in stored.values())) as staging:
        if staging is not None:
            _write(staging / WEIGHTS, stored, checkpoint.source)
    return target


def map_weights(directory: Path) -> dict[str, Tensor]:
    """The weights in `directory`, as views of the mapped file: nothing is read until it is used."""
    try:
        return load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights in {directory} are damaged ({error}): delete that directory.") from error


def _key(checkpoint: Checkpoint, dtype: torch.dtype, quantization: Quantization) -> str:
    identity = [LAYOUT_VERSION, str(dtype), quantization, repr(checkpoint.config)]
    for file in checkpoint.files:
        stat = file.stat()
        identity += [file.name, stat.st_size, int(stat.st_mtime), _samples(file, stat.st_size)]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _samples(file: Path, size: int) -> str:
    """A digest of pieces all over the file: two models of one size may be written within one second."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for index in range(NUM_SAMPLES):
            opened.seek(index * max(0, size - SAMPLE_BYTES) // (NUM_SAMPLES - 1))
            digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _write(path: Path, weights: Mapping[str, StoredWeight], source: TensorSource) -> None:
    """The safetensors format, weight by weight: the library's own writer wants all of them in memory at once."""
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name, weight in weights.items():
        start, end = end, end + weight.num_bytes
        kind, shape = DTYPE_NAMES[weight.stored_dtype], list(weight.stored_shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for weight in weights.values():
            stored = weight.read(source)
            assert stored.shape == weight.stored_shape
            file.write(stored.flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # else a crash could leave a cut file under the final name
