"""From a path to a model that runs: check that it fits, prepare its weights once, map them, pack and share them."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from service.errors import ModelNotFoundError, StartupError
from service.model import native_build
from service.model.architecture import ModelConfig
from service.model.encoder_config import is_encoder
from service.model.gguf_weights import open_gguf
from service.model.linear import Linear, alike_allocations, share_packed
from service.model.linears import load_linears
from service.model.memory import available_bytes
from service.model.native_ops import choose_ops
from service.model.prepared import map_weights, prepare
from service.model.safetensors_weights import open_directory
from service.model.storage import gibibytes, locked
from service.model.stored import Quantization, stored_weights
from service.model.transformer import Transformer
from service.model.weights import Checkpoint

logger = logging.getLogger(__name__)

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO_DTYPES = (torch.bfloat16, torch.float32)
DEFAULT_BLOCK_SIZE = 16
CPU = torch.device("cpu")


def open_checkpoint(path: Path) -> Checkpoint:
    """A Hugging Face directory or a GGUF file. Raises ModelError, ModelNotFoundError or UnsupportedModelError."""
    if path.is_dir():
        return open_directory(path)
    if path.is_file():
        return open_gguf(path)
    raise ModelNotFoundError(f"There is no model at {path}.")


def load_model(
    path: Path,
    *,
    dtype: DtypeName,
    device: str,
    cache_dir: Path,
    quantization: Quantization = "none",
    block_size: int = DEFAULT_BLOCK_SIZE,
) -> Transformer:
    """The model at `path` (see `open_checkpoint`), ready to run on `device` ("cpu", "cuda", "cuda:0", …).

    `dtype` "auto" is bfloat16 where the hardware computes in it, or the weights are quantized, else float32. Prepared
    weights are kept in `cache_dir`. Raises StartupError if the device is absent, cannot do what is asked for, or the
    weights do not fit into memory or cache, and what `open_checkpoint` raises.
    """
    target = _device(device)
    runtime_dtype = _runtime_dtype(dtype, quantization, target)
    checkpoint = open_checkpoint(path)
    stored = stored_weights(checkpoint, runtime_dtype, quantization)
    require_memory(path, sum(weight.num_bytes for weight in stored.values()), available_bytes(target), device)
    directory = prepare(checkpoint, dtype=runtime_dtype, quantization=quantization, cache_dir=cache_dir)
    plain = {name for name, weight in stored.items() if weight.format is None}
    weights = {name: tensor.to(target) if name in plain else tensor for name, tensor in map_weights(directory).items()}
    with alike_allocations() if target.type == "cpu" else nullcontext():
        linears = load_linears(stored, weights, target, cache_dir)
    if any(linear.is_packed for linear in linears.values()):
        _share_onednn(linears.values(), directory)
    others = {name: weights[name] for name in plain}
    return _transformer(checkpoint.config, others, linears, cache_dir, block_size)


def prepare_portable(path: Path, *, dtype: DtypeName, cache_dir: Path, quantization: Quantization = "none") -> None:
    """Fill `cache_dir` for machines other than this one, as a container image needs it: the weights in `dtype` ("auto":
    in each that it may turn out to be), and the native kernels. An encoder's files are read as they are. Raises
    StartupError and what `open_checkpoint` raises.
    """
    if is_encoder(path):
        return
    checkpoint = open_checkpoint(path)
    dtypes = AUTO_DTYPES if dtype == "auto" and quantization == "none" else (_runtime_dtype(dtype, quantization, CPU),)
    for runtime_dtype in dtypes:
        prepare(checkpoint, dtype=runtime_dtype, quantization=quantization, cache_dir=cache_dir)
    if platform.machine() == "x86_64":
        native_build.build(cache_dir)


def require_memory(path: Path, needed: int, available: int | None, device: str) -> None:
    """Raises StartupError with both numbers if `needed` bytes exceed the `available` ones (None: unknown, go on)."""
    if available is not None and needed > available:
        raise StartupError(
            f"The weights of {path} need {gibibytes(needed)} of memory on {device}, but only {gibibytes(available)}"
            " are free: free some, or choose a smaller model or dtype."
        )


def _share_onednn(linears: Collection[Linear], directory: Path) -> None:
    # oneDNN chooses the layout by the number of threads too.
    name = f"packed-{torch.__version__}-{torch.get_num_threads()}.bin"
    own = Path(tempfile.gettempdir()) / f"headcount-{os.getuid()}-packed"
    if not _share(linears, directory, name) and not _share(linears, own, f"{directory.name}-{name}"):
        logger.warning("Packed weights could not be shared: every replica keeps its own copy.")


def _share(linears: Collection[Linear], place: Path, name: str) -> bool:
    """Whether the packed weights are now backed by a file in `place`, which may be read-only if it has that file."""
    packed = place / name
    try:
        if not place.exists():
            place.mkdir(mode=0o700)
        if place.stat().st_uid not in (0, os.getuid()):
            raise PermissionError("it is somebody else's")  # who could change the weights under us
        with nullcontext() if packed.exists() else locked(packed):
            shared = share_packed(linears, packed)
    except OSError as error:
        logger.info("Packed weights cannot be kept in %s: %s.", place, error)
        return False
    logger.info("%s of packed weights are shared with other replicas of this machine.", gibibytes(shared))
    return True


def _transformer(
    config: ModelConfig, weights: Mapping[str, Tensor], linears: Mapping[str, Linear], cache_dir: Path, block_size: int
) -> Transformer:
    embedding = weights["embedding.weight"]
    ops = choose_ops(
        dtype=embedding.dtype,
        device=embedding.device,
        block_size=block_size,
        widths=(config.hidden_size, config.intermediate_size),
        head_dim=config.head_dim,
        heads_per_kv_head=config.num_heads // config.num_kv_heads,
        cache_dir=cache_dir,
    )
    return Transformer(config, weights, linears, ops=ops, block_size=block_size)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StartupError(f"The device {name!r} is not known: use cpu, cuda or cuda:<number>.") from error
    if device.type not in ("cpu", "cuda"):
        raise StartupError(f"The device {name!r} is not supported: use cpu, cuda or cuda:<number>.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise StartupError(f"There is no device {name!r}: PyTorch sees {torch.cuda.device_count()} CUDA devices.")
    return device


def _runtime_dtype(dtype: DtypeName, quantization: Quantization, device: torch.device) -> torch.dtype:
    if quantization == "none":
        return _native_dtype(device) if dtype == "auto" else DTYPES[dtype]
    if dtype not in ("auto", "bfloat16"):
        raise StartupError(f"quantization = {quantization} computes in bfloat16, not in {dtype}: leave out dtype.")
    if device.type != "cpu":
        raise StartupError(f"quantization = {quantization} is for the CPU, not for {device}: use none.")
    return torch.bfloat16


def _native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 halves the bytes per token, but is emulated, slowly, on hardware that does not compute in it."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32
