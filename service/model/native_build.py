"""Builds and loads `kernels.c`: the C versions of the memory-bound operators, for processors with AVX-512.

Built once per (source, flags) into the cache directory, at set-up (`headcount model prepare`) or when a replica loads
its model, never in a request. The library runs on every processor with `FEATURES`, so an image can have it built
and installed. Without a compiler things are only slower: one log line says so.
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
from pathlib import Path

import torch

from service.errors import StartupError

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
# What /proc/cpuinfo and compilers call them. On narrower vectors the kernels lose to PyTorch's operators (docs/log.md).
FEATURES = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
# Contraction off: the compiler may not fuse a multiply and an add in one place and leave them apart in another, or a
# row's bits would depend on how many rows it is computed with.
FLAGS = (
    "-O3",
    *(f"-m{feature}" for feature in FEATURES),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"),
)
FUNCTIONS = ("headcount_attention", "headcount_rotary", "headcount_norm", "headcount_silu_gate", "headcount_low_rank")
BUILD_TIMEOUT_S = 300
CPUINFO = Path("/proc/cpuinfo")


def load(cache_dir: Path, cpuinfo: Path = CPUINFO) -> ctypes.CDLL | None:
    """The kernels' library, built if need be; None where it cannot be had, or this processor cannot run it."""
    missing = set(FEATURES) - _features(cpuinfo)
    if missing:
        logger.info("This processor has no %s: plain PyTorch operators.", ", ".join(sorted(missing)))
        return None
    try:
        library = ctypes.CDLL(str(build(cache_dir)))
        for name in FUNCTIONS:
            getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int64]
            getattr(library, name).restype = None
    except (StartupError, OSError, AttributeError) as error:
        logger.warning("%s Plain PyTorch operators are used, slower.", error)
        return None
    return library


def build(cache_dir: Path) -> Path:
    """The library's file: the one that was installed beside the source, or that in `cache_dir`, compiled if it is not
    there. Raises StartupError with the compiler's reason.

    This processor need not be able to run it, but must be of its family.
    """
    key = hashlib.sha256("\0".join([SOURCE.read_text(), *FLAGS]).encode()).hexdigest()[:16]
    installed = SOURCE.with_name(f"kernels-{key}.so")
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
        _compile(compiler, runtime, target)
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


def _compile(compiler: tuple[str, ...], runtime: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    command = [*compiler, *FLAGS, "-o", str(partial), str(SOURCE), str(runtime), "-lm"]
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
