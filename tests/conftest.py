"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from jobs.machine import usable_cores

settings.register_profile("busy machine", deadline=None)  # how long an example takes says nothing here
settings.load_profile("busy machine")


def _take_own_cores() -> None:
    """Of several processes side by side give each its own processors: threads that wait for others' cost ten times."""
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = max(1, usable_cores() // beside)
    torch.set_num_threads(share)
    if beside > 1 and hasattr(os, "sched_setaffinity"):
        first = share * int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[at % len(cores)] for at in range(first, first + share)})


_take_own_cores()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
