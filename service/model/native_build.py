"""Builds and loads the C that is faster than PyTorch's operators, for processors with AVX-512.

Built once per (source, flags) into the cache directory, at set-up (`headcount model prepare`) or when a replica loads
its model, never in a request. A library runs on every processor with its features, so an image can have it built and
installed. Without a compiler things are only slower: one log line says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from service.errors import StartupError

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
HEADER = "parallel.h"
# Contraction off: the compiler may not fuse a multiply and an add in one place and leave them apart in another, or a
# row's bits would depend on how many rows it is computed with.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# What /proc/cpuinfo calls them. On narrower vectors the kernels lose to PyTorch's operators (docs/log.md).
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")


@dataclass(frozen=True, slots=True)
class Library:
    """`source` beside this file, for processors with `features`; `functions` take a structure and a count.

    `fallback` says what does without it.
    """

    source: str
    features: tuple[str, ...]
    functions: tuple[str, ...]
    fallback: str


OPERATORS = Library(
    source="kernels.c",
    features=AVX512,
    functions=(
        *("headcount_attention", "headcount_rotary", "headcount_norm"),
        *("headcount_silu_gate", "headcount_low_rank"),
    ),
    fallback="plain PyTorch operators",
)
LINEAR = Library(
    source="linear.c",
    features=(*AVX512, "avx512_bf16", "avx512_vnni"),
    functions=("headcount_linear",),
    fallback="PyTorch's linear layers",
)
BUILD_TIMEOUT_S = 300
CPUINFO = Path("/proc/cpuinfo")


def load(library: Library, cache_dir: Path, cpuinfo: Path = CPUINFO) -> ctypes.CDLL | None:
    """The library, built if need be; None where it cannot be had, or this processor cannot run it."""
    missing = set(library.features) - _features(cpuinfo)
    if missing:
        logger.info("This processor has no %s: %s.", ", ".join(sorted(missing)), library.fallback)
        return None
    try:
        loaded = ctypes.CDLL(str(_build(library, cache_dir, FOLDER)))
        for name in library.functions:
            getattr(loaded, name).argtypes = [ctypes.c_void_p, ctypes.c_int64]
            getattr(loaded, name).restype = None
    except (StartupError, OSError, AttributeError) as error:
        logger.warning("%s This is slower: %s.", error, library.fallback)
        return None
    return loaded


def build(cache_dir: Path, folder: Path = FOLDER) -> tuple[Path, ...]:
    """The libraries' files: those that were installed beside the sources, or those in `cache_dir`, compiled if they are
    not there. Raises StartupError with the compiler's reason.

    This processor need not be able to run them, but must be of their family.
    """
    return tuple(_build(library, cache_dir, folder) for library in (OPERATORS, LINEAR))


def _build(library: Library, cache_dir: Path, folder: Path) -> Path:
    source, header = folder / library.source, folder / HEADER
    flags = (*(f"-m{feature.replace('_', '')}" for feature in library.features), *FLAGS)
    key = hashlib.sha256("\0".join([source.read_text(), header.read_text(), *flags]).encode()).hexdigest()[:16]
    installed = source.with_name(f"{source.stem}-{key}.so")
    target = cache_dir / "native" / installed.name
    for built in (installed, target):
        if built.exists():
            return built
    runtime = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    compiler = find_compiler()
    if compiler is None:
        raise StartupError("No C compiler was found: install cc, gcc, clang or the ziglang package.")
    if not runtime.exists():
        raise StartupError("This PyTorch brings no OpenMP runtime that the native kernels could share.")
    try:
        _compile((*compiler, *flags), source, runtime, target)
    except (OSError, subprocess.SubprocessError) as error:
        raise StartupError(f"Building the native kernels failed: {_reason(error)}.") from error
    return target


def find_compiler() -> tuple[str, ...] | None:
    """The C compiler's command: $CC, the system's, or the one in the `ziglang` package."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return (found,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    return None


def _compile(compiler: tuple[str, ...], source: Path, runtime: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    command = [*compiler, "-o", str(partial), str(source), str(runtime), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)  # noqa: S603 - our own command
    partial.rename(target)


def _features(cpuinfo: Path) -> set[str]:
    """What this processor can do, in Linux's words; nothing where that is not known."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return {feature for line in lines if line.startswith("flags") for feature in line.partition(":")[2].split()}


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None) or str(error)
    return str(output).strip().splitlines()[-1] if str(output).strip() else type(error).__name__
