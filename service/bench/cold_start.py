"""From nothing to the first token: how long a replica takes to start, and what a second one costs in memory. Linux.

    python -m service.bench.cold_start

Starts replicas without Ray (`replica_start`), one after the other on prepared weights and a warm page cache, and says
what each stage takes (the median of a few). Then two stay, and their memory is compared: PSS counts a page that several
processes map by its share, so what a second process adds is what it does not share.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from service.bench.replica_start import STAGES
from service.cli import SPIN_COUNT, SPIN_VARIABLE
from service.config import load_settings
from service.errors import StartupError

MIB = 1 << 20
NUM_STARTS = 5


@dataclass(frozen=True, slots=True)
class Start:
    """A replica that is running: seconds of each stage, and its process."""

    stages_s: Mapping[str, float]
    pid: int

    @property
    def total_s(self) -> float:
        return sum(self.stages_s.values())


@contextmanager
def started() -> Iterator[Start]:
    """One replica; its settings are those of the environment. Raises StartupError."""
    command = [sys.executable, "-m", "service.bench.replica_start", str(time.monotonic())]
    environment = {SPIN_VARIABLE: SPIN_COUNT} | os.environ
    with subprocess.Popen(  # noqa: S603 - our own command
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise StartupError(f"The replica did not start: status {process.wait()}.")
        yield Start(json.loads(line), process.pid)
        process.stdin.close()


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB of a process, by its share of each page: all, what comes from no file, and what it maps of the model's cache.

    What else it maps is program code.
    """

    all: float
    own: float
    weights: float

    @classmethod
    def of(cls, smaps: str, cache: Path) -> Memory:
        """From the text of /proc/<pid>/smaps."""
        shares = {"Pss": 0, "Anonymous": 0, "cache": 0}  # KiB
        is_cache = False
        for line in smaps.splitlines():
            word, *rest = line.split()
            if not word.endswith(":"):
                is_cache = rest[-1].startswith(f"{cache}/")
                continue
            if word in ("Pss:", "Anonymous:"):
                shares[word[:-1]] += int(rest[0])
            if is_cache and word == "Pss:":
                shares["cache"] += int(rest[0])
        return cls(*(share * 1024 / MIB for share in shares.values()))

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.all + other.all, self.own + other.own, self.weights + other.weights)

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.all - other.all, self.own - other.own, self.weights - other.weights)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Medians of several starts, and memory."""

    stages_s: Mapping[str, float]
    first_token_s: float
    one: Memory
    second_adds: Memory


def measure(cache: Path) -> ColdStart:
    """The very first start is not counted: it may have prepared what the others find."""
    starts = []
    for _ in range(1 + NUM_STARTS):
        with started() as start:
            starts.append(start)
    del starts[0]
    with started() as first:
        alone = _memory(first, cache)
        with started() as second:
            both = _memory(first, cache) + _memory(second, cache)
    return ColdStart(
        stages_s={stage: statistics.median(start.stages_s[stage] for start in starts) for stage in STAGES},
        first_token_s=statistics.median(start.total_s for start in starts),
        one=alone,
        second_adds=both - alone,
    )


def _memory(start: Start, cache: Path) -> Memory:
    return Memory.of(Path(f"/proc/{start.pid}/smaps").read_text(), cache)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def main(as_json: bool) -> None:
    """Time the starts of a replica, and weigh a second one."""
    found = measure(load_settings(flags={}, environment=os.environ).settings.cache_path)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    console = Console(highlight=False)
    times = Table("stage", "seconds", title=f"start of a replica, median of {NUM_STARTS}")
    for stage, seconds in found.stages_s.items():
        times.add_row(stage, f"{seconds:.2f}")
    times.add_section()
    times.add_row("all", f"{found.first_token_s:.2f}")
    console.print(times)
    memory = Table("", "all", "own", "weights", title="MiB, shared pages by share")
    for name, each in (("one replica", found.one), ("a second adds", found.second_adds)):
        memory.add_row(name, f"{each.all:.0f}", f"{each.own:.0f}", f"{each.weights:.0f}")
    console.print(memory)


if __name__ == "__main__":
    main()
