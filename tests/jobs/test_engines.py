"""Both engines do the same work; these tests run on each."""

from __future__ import annotations

import functools
import gc
import logging
import math
import os
import pickle
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from jobs.engine import Engine, Step, Tell
from jobs.inprocess import InProcess
from jobs.local import LocalRay, _compact
from jobs.machine import usable_cores
from pipeline.dataset.images import DecodedShard
from pipeline.dataset.manifest import Shard
from pipeline.errors import AuditError, ModelError


def shards_of(*sizes: int) -> list[Shard]:
    starts = np.cumsum([0, *sizes])
    table = pa.table({"number": pa.array(range(sum(sizes)), pa.int64())})
    return [Shard(index, table.slice(int(starts[index]), size)) for index, size in enumerate(sizes)]


def decode(shard: Shard, *, fails_at: int | None = None) -> DecodedShard:
    if shard.index == fails_at:
        raise ModelError(f"shard {shard.index} cannot be decoded")
    pixels = np.full((len(shard.rows), 2, 2, 3), shard.index, dtype=np.uint8)
    return DecodedShard(shard.index, shard.rows, pixels)


@dataclass
class Doubling:
    """A step that leaves a mark each time that it is built."""

    marks: Path

    def __post_init__(self) -> None:
        (self.marks / f"built-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, shard: DecodedShard) -> list[int]:
        assert (shard.pixels == shard.index).all()
        return [2 * number for number in shard.rows["number"].to_pylist()]


def pair(shard: DecodedShard, doubled: list[int]) -> tuple[int, list[int]]:
    return shard.index, doubled


def test_every_shard_comes_back_once_and_steps_are_built_once_per_worker(engine: Engine, tmp_path: Path) -> None:
    sizes = (3, 1, 2, 2, 1, 4, 1)
    found = dict(engine.map_shards(shards_of(*sizes), decode, functools.partial(Doubling, tmp_path), pair))
    numbers = [number for index in range(len(sizes)) for number in found[index]]
    assert len(found) == len(sizes)
    assert numbers == [2 * number for number in range(sum(sizes))]
    assert 1 <= len(list(tmp_path.iterdir())) <= (2 if isinstance(engine, LocalRay) else 1)


@dataclass
class Meeting:
    """A step that ends only once another worker is at work as well."""

    place: Path

    def __call__(self, shard: DecodedShard) -> None:
        (self.place / str(os.getpid())).touch()
        patience = time.monotonic() + 60
        while len(list(self.place.iterdir())) < 2:
            assert time.monotonic() < patience, "no other worker came"
            time.sleep(0.01)


def test_workers_are_at_work_at_once(local_ray: LocalRay, tmp_path: Path) -> None:
    found = local_ray.map_shards(shards_of(1, 1, 1), decode, functools.partial(Meeting, tmp_path), pair)
    assert sorted(index for index, _ in found) == [0, 1, 2]


@dataclass
class FirstFails(Meeting):
    """A step that fails at the first shard, once another worker is at work, and takes long at all others."""

    def __call__(self, shard: DecodedShard) -> None:
        if shard.index == 0:
            super().__call__(shard)
            raise ModelError("does not fit")
        (self.place / str(os.getpid())).touch()
        time.sleep(60)


def test_work_that_an_error_ends_is_not_talked_of(
    local_ray: LocalRay, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = local_ray.map_shards(shards_of(1, 1, 1, 1), decode, functools.partial(FirstFails, tmp_path), pair)
    with closing(results), pytest.raises(ModelError):
        list(results)
    time.sleep(3)  # Ray speaks from a thread of its own
    assert "".join(capfd.readouterr()) == ""


def test_of_errors_that_several_workers_meet_one_is_told(
    local_ray: LocalRay, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", True)
    fails = functools.partial(failing_build, ModelError("does not fit"))
    for _ in range(2):
        with pytest.raises(ModelError) as caught:
            list(local_ray.map_shards(shards_of(1, 1, 1, 1), decode, fails, pair))
        del caught
        gc.collect()  # the error's frames, and with them what was not read
    time.sleep(1)  # Ray speaks from a thread of its own
    assert caplog.text == ""


def test_no_shards_build_no_step(engine: Engine, tmp_path: Path) -> None:
    assert list(engine.map_shards([], decode, functools.partial(Doubling, tmp_path), pair)) == []
    assert list(tmp_path.iterdir()) == []


def failing_step(error: Exception) -> Step:
    def step(shard: DecodedShard) -> Any:
        raise error

    return step


def failing_build(error: Exception) -> Step:
    raise error


def missing_rule(told: str) -> Exception:
    from fixcore.errors import MissingRule  # every worker reads this module, and torch takes it two seconds

    return MissingRule(told)


@pytest.mark.parametrize("kind", [ModelError, missing_rule, ZeroDivisionError], ids=["audit", "fixcore", "bug"])
@pytest.mark.parametrize("make", [failing_step, failing_build])
def test_what_a_step_raises_is_raised_here_as_itself(
    engine: Engine, make: Callable[[Exception], Step], kind: Callable[[str], Exception]
) -> None:
    error = kind("'foo_1' does not fit")
    results = engine.map_shards(shards_of(1, 1, 1), decode, functools.partial(make, error), pair)
    with closing(results), pytest.raises(type(error)) as caught:
        list(results)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


def test_what_decoding_raises_is_raised_here_as_itself(engine: Engine, tmp_path: Path) -> None:
    results = engine.map_shards(
        shards_of(1, 1, 1), functools.partial(decode, fails_at=1), functools.partial(Doubling, tmp_path), pair
    )
    with closing(results), pytest.raises(ModelError) as caught:
        list(results)
    assert type(caught.value) is ModelError
    assert str(caught.value) == "shard 1 cannot be decoded"


def test_closing_early_ends_the_work(engine: Engine, tmp_path: Path) -> None:
    with closing(engine.map_shards(shards_of(*[1] * 20), decode, functools.partial(Doubling, tmp_path), pair)) as some:
        next(some)
    again = dict(engine.map_shards(shards_of(2, 2), decode, functools.partial(Doubling, tmp_path), pair))
    assert again == {0: [0, 2], 1: [4, 6]}


def squared(item: int, tell: Tell) -> int:
    tell(0.5)
    time.sleep(0.7)  # longer than one look at the board
    tell(1.0)
    return item * item


def test_tasks_return_their_results_and_tell_how_far_they_are(engine: Engine) -> None:
    told: list[tuple[int, float]] = []
    found = sorted(engine.map_tasks(squared, [2, 3], lambda position, share: told.append((position, share))))
    assert found == [4, 9]
    for position in (0, 1):
        shares = [share for at, share in told if at == position]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert set(shares) <= {0.0, 0.5, 1.0}
    assert list(engine.map_tasks(squared, [], lambda *_: None)) == []


def together(item: tuple[Path, int], tell: Tell) -> bool:
    """Whether so many tasks were at work at once."""
    place, tasks = item
    (place / str(os.getpid())).touch()
    until = time.monotonic() + 30
    while len(list(place.iterdir())) < tasks and time.monotonic() < until:
        time.sleep(0.01)
    return len(list(place.iterdir())) == tasks


@pytest.mark.skipif(usable_cores() < 2, reason="tasks of one core take turns")
def test_no_task_is_left_to_run_alone(local_ray: LocalRay, tmp_path: Path) -> None:
    tasks = usable_cores() + 1
    assert all(local_ray.map_tasks(together, [(tmp_path, tasks)] * tasks, lambda *_: None))


@pytest.mark.parametrize(
    ("cores", "tasks", "at_once"), [(4, 5, 5), (4, 6, 6), (4, 8, 4), (4, 10, 5), (2, 5, 3), (1, 5, 1), (4, 3, 4)]
)
def test_tasks_share_the_cores_evenly(cores: int, tasks: int, at_once: int) -> None:
    engine = LocalRay()
    engine._node_cores = engine._all_cores = cores
    assert math.floor(cores / engine._cores_for(tasks)) == at_once


def refused(item: int, tell: Tell) -> int:
    raise AuditError(f"fold {item} has no images")


def test_what_a_task_raises_is_raised_here_as_itself(engine: Engine) -> None:
    with closing(engine.map_tasks(refused, [4], lambda *_: None)) as results, pytest.raises(AuditError) as caught:
        list(results)
    assert type(caught.value) is AuditError
    assert str(caught.value) == "fold 4 has no images"


def test_threads_share_the_cores(local_ray: LocalRay) -> None:
    cores = usable_cores()
    assert InProcess().threads == max(1, cores // 2)
    assert InProcess().threads_for(5) == cores
    assert local_ray.threads == max(1, cores // 2)
    assert local_ray.threads_for(cores) == 1
    assert local_ray.threads_for(10 * cores) == 1
    assert local_ray.threads_for(1) == cores
    with LocalRay() as natural:
        assert natural.threads * natural._workers <= cores


@dataclass
class DiesOnce:
    """A step whose process is killed on its second shard, unless a mark says that this happened before."""

    marks: Path
    every_time: bool = False
    seen: int = 0

    def __call__(self, shard: DecodedShard) -> list[int]:
        self.seen += 1
        mark = self.marks / "died"
        if self.seen == 2 and (self.every_time or not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return shard.rows["number"].to_pylist()


def test_a_killed_worker_is_started_again_and_no_shard_is_missing(local_ray: LocalRay, tmp_path: Path) -> None:
    found = list(local_ray.map_shards(shards_of(*[1] * 6), decode, functools.partial(DiesOnce, tmp_path), pair))
    assert (tmp_path / "died").exists()
    assert sorted(found) == [(index, [index]) for index in range(6)]


def test_a_worker_that_is_killed_again_and_again_is_one_line(local_ray: LocalRay, tmp_path: Path) -> None:
    make = functools.partial(DiesOnce, tmp_path, every_time=True)
    results = local_ray.map_shards(shards_of(*[1] * 40), decode, make, pair)
    with closing(results), pytest.raises(AuditError, match="Ray lost a worker 3 times") as caught:
        list(results)
    assert "\n" not in str(caught.value)


def test_a_shard_is_sent_without_the_rest_of_the_manifest() -> None:
    shard = shards_of(*[10] * 1000)[500]
    sent = _compact(shard)
    assert len(pickle.dumps(sent)) < 2_000 < len(pickle.dumps(shard))
    assert sent.rows.equals(shard.rows)


def test_ray_is_left_running_when_it_was_there_before(local_ray: LocalRay) -> None:
    with LocalRay(workers=1) as second:
        assert second.threads == usable_cores()
    assert ray.is_initialized()
