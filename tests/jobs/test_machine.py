from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.machine import usable_cores, usable_memory


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 2), (None, None)],
)
def test_a_containers_quota_limits_the_cores(tmp_path: Path, quota: str | None, cores: int | None) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    there = len(os.sched_getaffinity(0))
    assert usable_cores(tmp_path) == (there if cores is None else min(cores, there))


@pytest.mark.parametrize(("limit", "expected"), [("1048576", 1 << 20), ("max", None), (None, None)])
def test_a_containers_limit_limits_the_memory(tmp_path: Path, limit: str | None, expected: int | None) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit + "\n")
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert usable_memory(tmp_path) == (expected or there)


_TAKES_MEMORY = """
import resource, sys
import torch
from jobs.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(16):  # until there is a hole of the right size
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_that_was_freed_is_used_again() -> None:
    """Else the system faults in every page of it anew."""
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", _TAKES_MEMORY, how], check=True, capture_output=True).stdout)
        for how in ("default", "keep")
    )
    assert kept * 2 < given_back  # a small piece that settles in the hole now and then makes it too small
