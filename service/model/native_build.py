"""Builds and loads `kernels.c`: the C versions of the memory-bound operators.

Built once per (source, compiler, processor) into the cache directory, at set-up (`headcount model prepare`) or when a
replica loads its model, never in a request. Without a compiler things are only slower: one log line says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.c")
# Contraction off: the compiler may not fuse a multiply and an add in one place and leave them apart in another, or a
# row's bits would depend on how many rows it is computed with.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
FUNCTIONS = ("headcount_attention", "headcount_rotary", "headcount_norm", "headcount_silu_gate")
BUILD_TIMEOUT_S = 300


def load(cache_dir: Path) -> ctypes.CDLL | None:
    """The kernels' library, built if need be; None where it cannot be had."""
    runtime = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    if sys.platform != "linux" or not runtime.exists():
        logger.info("Native kernels need PyTorch's own OpenMP runtime on Linux; using the plain PyTorch operators.")
        return None
    compiler = find_compiler()
    if compiler is None:
        logger.warning("No C compiler found (cc, gcc, clang or the ziglang package): plain PyTorch operators, slower.")
        return None
    key = hashlib.sha256("\0".join([SOURCE.read_text(), *compiler, *FLAGS, _processor()]).encode()).hexdigest()[:16]
    target = cache_dir / "native" / f"kernels-{key}.so"
    try:
        if not target.exists():
            _build(compiler, runtime, target)
        library = ctypes.CDLL(str(target))
        for name in FUNCTIONS:
            getattr(library, name).argtypes = [ctypes.c_void_p, ctypes.c_int64]
            getattr(library, name).restype = None
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.warning("The native kernels could not be built (%s): plain PyTorch operators, slower.", _reason(error))
        return None
    return library


def find_compiler() -> tuple[str, ...] | None:
    """The C compiler's command: $CC, the system's, or the one in the `ziglang` package."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return (found,)
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    return None


def _build(compiler: tuple[str, ...], runtime: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    command = [*compiler, *FLAGS, "-o", str(partial), str(SOURCE), str(runtime), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)  # noqa: S603 - our own command
    partial.rename(target)


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _reason(error: Exception) -> str:
    output = getattr(error, "stderr", None) or str(error)
    return str(output).strip().splitlines()[-1] if str(output).strip() else type(error).__name__
