"""What the cgroup allows this process: bytes of memory and shares of processors, cgroup v1 and v2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_V1_UNLIMITED = 1 << 60


def memory_limit(root: Path = _CGROUP_ROOT, self_file: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process may use: the lowest limit on the way to the root, or the machine's memory."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder in _folders(root, self_file, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdigit() and int(text) < _V1_UNLIMITED:
                limits.append(int(text))
    return min(limits)


def cpu_limit(root: Path = _CGROUP_ROOT, self_file: Path = Path("/proc/self/cgroup")) -> float:
    """Processors that this process may keep busy: the lowest quota on the way to the root, or its affinity."""
    limits = [float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)]
    for folder in _folders(root, self_file, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            limits.append(int(quota) / int(period))
    return min(limits)


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes of this process in memory now."""
    fields = _read(statm).split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def _folders(root: Path, self_file: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, for one controller."""
    for line in _read(self_file).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Inside a container the path may be the host's: then only the root is there, and it is the container's own.
        for base in (root / controller, root) if controllers else (root, root / "unified"):
            folder = base / path.lstrip("/")
            while folder != base and base in folder.parents:
                yield folder
                folder = folder.parent
            yield base


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
