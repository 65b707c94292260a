"""Metrics that several processes of one node share: a directory of memory-mapped files, one set per process.

The mechanism is prometheus_client's. Added here: a process is known by its id *and* start time, so that an id used
again is never taken for the process before it; and what dead processes counted moves into one file per type, so that
counters keep their value, gauges of the dead are gone, and the directory does not grow with every replica that ever
ran. The processes must see each other's ids (one container or host); a directory in memory (/dev/shm) is the right
place.
"""

from __future__ import annotations

import fcntl
import functools
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

# prometheus_client ships these three without annotations.
_MmapedDict: Any = MmapedDict
_MultiProcessCollector: Any = MultiProcessCollector
_multi_process_value: Any = values.MultiProcessValue

_DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_RETIRED = "retired"  # stands for a process in the name of the file that holds what dead processes counted


@functools.cache
def configure(directory: Path) -> None:
    """Keep this process's metrics in `directory`. Call before the first metric is made, with one directory per process.

    It does not matter whether prometheus_client was imported before: the library decides at import by the
    environment, and Ray may have imported it long ago, so its choice is replaced here.
    """
    directory.mkdir(parents=True, exist_ok=True)
    os.environ[_DIRECTORY_VARIABLE] = str(directory)
    values.ValueClass = _multi_process_value(_this_process)


@contextmanager
def collected(directory: Path) -> Iterator[CollectorRegistry]:
    """All processes' metrics together, after the dead have been retired. Exclusive among processes while it is open."""
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _retire_dead_processes(directory)
        registry = CollectorRegistry()
        _MultiProcessCollector(registry, path=str(directory))
        yield registry


def _retire_dead_processes(directory: Path) -> None:
    retired: dict[str, list[Path]] = defaultdict(list)
    for file in directory.glob("*.db"):
        kind, _, process = file.stem.rpartition("_")
        if process == _RETIRED or _is_alive(process):
            continue
        if kind.startswith("gauge"):
            file.unlink()
        else:
            retired[kind].append(file)
    for kind, files in retired.items():
        _add_up(files, directory / f"{kind}_{_RETIRED}.db")


def _add_up(files: list[Path], total: Path) -> None:
    """Add the values in `files` to those in `total`, and remove `files`."""
    sums: dict[str, float] = defaultdict(float)
    for file in [total, *files] if total.exists() else files:
        for key, value, _timestamp, _position in _MmapedDict.read_all_values_from_file(str(file)):
            sums[key] += value
    draft = total.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    written = _MmapedDict(str(draft))
    for key, value in sums.items():
        written.write_value(key, value, 0.0)
    written.close()
    draft.replace(total)
    for file in files:
        file.unlink()


def _this_process() -> str:
    return _identity(os.getpid())


@functools.cache
def _identity(process_id: int) -> str:
    """`<id>.<start time>`: asked for with every increment, so remembered; a forked child has another id."""
    return f"{process_id}.{_start_time(process_id)}"


def _is_alive(process: str) -> bool:
    process_id, _, started = process.partition(".")
    return str(_start_time(int(process_id))) == started


def _start_time(process_id: int) -> int | None:
    """In clock ticks since boot; None when there is no such process, or only its exit status is left (a zombie)."""
    try:
        status = Path(f"/proc/{process_id}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Fields 3 (state) and 22 (start time) of proc_pid_stat(5); field 2, in brackets, may itself hold spaces and
    # brackets.
    state, *rest = status.rpartition(")")[2].split()
    return None if state in {"Z", "X"} else int(rest[18])
