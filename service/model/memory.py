"""How much memory a process may still take."""

from __future__ import annotations

from pathlib import Path

import torch

CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device, *, proc: Path = Path("/proc"), cgroup_root: Path = CGROUP_ROOT) -> int | None:
    """Free memory of `device`, in bytes; None where the system does not tell.

    On the CPU: what the machine can give without swapping, or what the control group's limit (v2) leaves, if that is
    less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    bounds = [_machine(proc), *_control_groups(proc, cgroup_root)]
    return min((bound for bound in bounds if bound is not None), default=None)


def _machine(proc: Path) -> int | None:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kibibytes[0] * 1024 if kibibytes else None


def _control_groups(proc: Path, root: Path) -> list[int]:
    """What each limit on the way from our control group to the root leaves. Inactive page cache counts as free."""
    try:
        entries = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((root / entry[4:] for entry in entries if entry.startswith("0::/")), root)
    left = []
    for group in (own, *own.parents):
        if not group.is_relative_to(root):
            break
        try:
            limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # the root has no limit; a group we may not read does not bind us
        if limit != "max":
            left.append(max(int(limit) - used + int(statistics.get("inactive_file", 0)), 0))
    return left
