from __future__ import annotations

import os
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
