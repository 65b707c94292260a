"""Memory of a process, from what the kernel says of its mappings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.bench.cold_start import Memory, started
from service.bench.replica_start import STAGES

CACHE = Path("/home/me/.cache/headcount")
SMAPS = """\
55d0-55d1 r-xp 00000000 fe:00 9  /home/me/.cache/headcount/prepared/a/weights.safetensors
Size:               4096 kB
Pss:                2048 kB
Anonymous:          1024 kB
VmFlags: rd ex mr mw me sd
55d1-55d2 rw-p 00000000 00:00 0
Pss:                1024 kB
Anonymous:          1024 kB
VmFlags: rd wr
55d3-55d4 r-xp 00000000 fe:00 9  /home/me/.cache/headcount-2/libc.so
Pss:                3072 kB
Anonymous:             0 kB
"""


def test_shares_are_added_by_what_they_are_of() -> None:
    """Everything; what is its own; and what lies below the model's cache, not beside it."""
    assert Memory.of(SMAPS, CACHE) == Memory(all=6.0, own=2.0, weights=2.0)


def test_what_a_second_process_adds() -> None:
    """Both together, less the first when it was alone."""
    alone, together = Memory(6.0, 2.0, 2.0), Memory(4.0, 2.0, 1.0)
    assert together + together - alone == Memory(2.0, 2.0, 0.0)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel tells only on Linux")
def test_this_process_can_be_weighed() -> None:
    """The kernel's own text is understood: we are not weightless."""
    found = Memory.of(Path(f"/proc/{os.getpid()}/smaps").read_text(), CACHE)
    assert found.all > found.own > 0.0


@pytest.mark.integration
def test_a_start_is_timed_from_process_to_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process with an engine that computes nothing: every stage but the reading of weights takes time."""
    monkeypatch.setenv("HEADCOUNT_RUNNER", "synthetic")
    with started() as start:
        assert tuple(start.stages_s) == STAGES
        assert [stage for stage, seconds in start.stages_s.items() if seconds <= 0.0] == ["weights"]
        assert Path(f"/proc/{start.pid}").exists()
    assert not Path(f"/proc/{start.pid}").exists()
