"""Filling the cache directory safely: one process at a time, all or nothing, and only if it fits."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import StartupError


@contextmanager
def filling(target: Path, num_bytes: int) -> Iterator[Path | None]:
    """Create the directory `target` atomically, once, however many processes ask for it together.

    Yields a staging directory to fill with about `num_bytes`, which becomes `target` when the block ends without an
    exception and is removed otherwise. Yields None if `target` exists, maybe made by another process while we waited
    for the lock; a read-only cache serves then. Raises StartupError if the disk is too small or cannot be written.
    """
    if target.is_dir():
        yield None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if target.is_dir():
                yield None
                return
            require_space(target.parent, num_bytes)
            staging = target.with_name(f"{target.name}.partial")
            shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed; nobody else holds the lock
            staging.mkdir()
            try:
                yield staging
                staging.rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise StartupError(f"The cache directory {target.parent} cannot be used: {error}.") from error


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, a file beside it. The system releases it when the process dies."""
    with target.with_name(f"{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_space(directory: Path, num_bytes: int) -> None:
    """Raises StartupError with both numbers if the disk of `directory` has less than `num_bytes` free."""
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise StartupError(
            f"{directory} needs {gibibytes(num_bytes)} of free disk, but has {gibibytes(free)}:"
            " make room or choose another cache directory."
        )


def gibibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
