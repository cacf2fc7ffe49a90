from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobs.inprocess import InProcess
from jobs.local import LocalRay


@pytest.fixture(scope="module")
def local_ray() -> Iterator[LocalRay]:
    """Ray with two workers, for all tests of a module that need it."""
    with LocalRay(workers=2) as engine:
        yield engine


@pytest.fixture(params=["inprocess", "ray"])
def engine(request: pytest.FixtureRequest) -> InProcess | LocalRay:
    return InProcess() if request.param == "inprocess" else request.getfixturevalue("local_ray")
