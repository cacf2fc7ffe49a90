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


# Processes side by side share the processors: threads of one that wait for those of another cost ten times the work.
_BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, usable_cores() // _BESIDE))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
