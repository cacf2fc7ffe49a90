"""What this machine lets us use: processors and memory, within the limits of a container."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

from pipeline.errors import ConfigError, ModelError

_LIMITS = Path("/sys/fs/cgroup")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # their numbers in malloc.h


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


def usable_device(told: str) -> str:
    """Return cpu or cuda for auto, cpu or cuda; an AuditError for another word, and for a GPU that is not there."""
    import torch  # takes seconds, which what only counts processors need not wait for

    if told not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {told!r}; it must be auto, cpu or cuda")
    if told == "cuda" and not torch.cuda.is_available():
        raise ModelError("device = cuda, but torch sees no GPU here; use --device cpu or auto")
    if told == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return told


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for the next time, instead of giving it back to the system.

    A network takes and frees hundreds of MB per batch. By default glibc gives each large piece back, and the system
    hands out pages of zeros anew, which takes as long as half of the arithmetic. In return a process holds on to the
    most that it once needed. Nothing happens where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)  # the largest number there is
        mallopt(_MMAP_THRESHOLD, 1 << 30)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip() or None
    except OSError:
        return None
