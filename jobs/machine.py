"""What this machine lets us use: processors and memory, within the limits of a container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_LIMITS = Path("/sys/fs/cgroup")


def usable_cores(limits: Path = _LIMITS) -> int:
    """Return how many processors this process may keep busy, at least 1: affinity, and a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read(limits / "cpu.max") or "max 1").split()
    if quota == "max":
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def usable_memory(limits: Path = _LIMITS) -> int | None:
    """Return the bytes of memory this process may fill; None where the system does not say."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _read(limits / "memory.max") or "max"
    return memory if limit == "max" else min(memory, int(limit))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except OSError:
        return None
