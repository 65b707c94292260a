"""How much memory is free: the machine's answer, bounded by the control groups we live in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from service.model.memory import available_bytes

CPU = torch.device("cpu")
MEMINFO = "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 4000 kB\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text("1:name=systemd:/old\n0::/pod/container\n")
    return proc


def group(directory: Path, limit: str, used: int, inactive: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "memory.max").write_text(f"{limit}\n")
    (directory / "memory.current").write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 1\ninactive_file {inactive}\n")


def test_without_limits_the_machine_decides(proc: Path, tmp_path: Path) -> None:
    """MemAvailable counts, not MemFree: the page cache gives way."""
    assert available_bytes(CPU, proc=proc, cgroup_root=tmp_path / "cgroup") == 4000 * 1024
    group(tmp_path / "cgroup/pod/container", "max", 10**9, 0)
    assert available_bytes(CPU, proc=proc, cgroup_root=tmp_path / "cgroup") == 4000 * 1024


def test_the_tightest_limit_decides(proc: Path, tmp_path: Path) -> None:
    """Our own group's limit and its parents' bind; what a limit leaves counts reclaimable page cache."""
    root = tmp_path / "cgroup"
    group(root / "pod/container", "3000000", 1_000_000, 200_000)
    assert available_bytes(CPU, proc=proc, cgroup_root=root) == 2_200_000
    group(root / "pod", "1500000", 1_000_000, 0)
    assert available_bytes(CPU, proc=proc, cgroup_root=root) == 500_000
    group(root / "pod", "1500000", 2_000_000, 0)
    assert available_bytes(CPU, proc=proc, cgroup_root=root) == 0


def test_a_container_sees_its_own_group_as_the_root(proc: Path, tmp_path: Path) -> None:
    """Inside a container the group's path is `/` and its files lie at the root."""
    (proc / "self/cgroup").write_text("0::/\n")
    group(tmp_path / "cgroup", "2000000", 500_000, 0)
    assert available_bytes(CPU, proc=proc, cgroup_root=tmp_path / "cgroup") == 1_500_000


def test_a_system_that_does_not_tell_gives_none(tmp_path: Path) -> None:
    """Unknown is None, not 0."""
    assert available_bytes(CPU, proc=tmp_path / "no", cgroup_root=tmp_path / "no") is None
