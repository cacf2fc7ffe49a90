"""The audit on Ray: decoding on CPU tasks, one judge per actor, a bounded number of shards on the way.

Ray core rather than Ray Data: a shard is the unit that is judged, written and committed, and Ray Data splits and
bundles blocks by their size in memory, so that one shard can reach two actors.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from jobs.engine import Decode, Finish, Item, Result, Step, Tell
from jobs.machine import keep_freed_memory, usable_cores
from pipeline.dataset.images import DecodedShard
from pipeline.dataset.manifest import Shard
from pipeline.errors import AuditError

_MEMORY_PER_WORKER = 3 << 30
"""Bytes that torch, a network and the recorded activations of a batch take, on the large side."""
_DECODE_THREADS = 4
"""What one decoding task keeps busy with large images (`pipeline.dataset.images`)."""
_QUEUED = 2
"""Shards handed to an actor: one being judged, one waiting for it."""
_LOST_BEFORE_GIVING_UP = 2
_SECONDS_BETWEEN_LOOKS = 0.5


class LocalRay:
    """Ray on this machine, or the cluster that RAY_ADDRESS names; started here only if none is connected."""

    def __init__(self, *, workers: int | None = None, gpu: bool = False) -> None:
        """`workers`: number of judges; None: one per GPU, or one per core as far as memory goes.

        `gpu`: judges share the GPUs. One thread each is the fastest way to use cores: half of the work are operations
        too small to share, and threads that wait for each other come to a standstill once anything else needs a core.
        """
        self._asked = workers
        self._gpu = gpu
        self._started = False
        self._workers, self._node_cores, self._all_cores, self._gpus = 1, 1, 1, 0

    def __enter__(self) -> LocalRay:
        """Connect, or start Ray quietly: no dashboard, no worker output on the terminal, nothing sent home.

        Raises AuditError when Ray does not start, or has no GPU where one is needed.
        """
        if not ray.is_initialized():
            _start()
            self._started = True
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._node_cores = max(1, int(max(node.get("CPU", 0) for node in nodes)))
        self._all_cores = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
        self._gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if self._gpu and not self._gpus:
            raise AuditError("Ray has no GPU to give; use --device cpu, or --engine inprocess")
        memory = sum(node.get("memory", 0) for node in nodes)
        room = min(self._all_cores, int(memory // _MEMORY_PER_WORKER))
        self._workers = self._asked or max(1, self._gpus if self._gpu else room)
        return self

    def __exit__(self, *exception: object) -> None:
        """Shut Ray down if it was started here."""
        if self._started:
            ray.shutdown()
            self._started = False

    @property
    def workers(self) -> int:
        """As asked for, or one per GPU, or one per core as far as memory goes."""
        return self._workers

    @property
    def threads(self) -> int:
        """An even share of the cores."""
        return max(1, min(self._node_cores, self._all_cores // self._workers))

    def threads_for(self, tasks: int) -> int:
        """An even share of the cores."""
        return max(1, min(self._node_cores, self._all_cores // max(1, tasks)))

    def _cores_for(self, tasks: int) -> float:
        """What a task claims: less than a core where a last one would be left to run alone."""
        rounds = tasks // self._all_cores
        if rounds == 0:
            return self.threads_for(tasks)
        return math.floor(1e4 * self._all_cores / math.ceil(tasks / rounds)) / 1e4  # Ray counts in ten-thousandths

    def map_shards(
        self, shards: Sequence[Shard], decode: Decode, make_step: Callable[[], Step], finish: Finish
    ) -> Generator[Any, None, None]:
        """See `Engine.map_shards`; as they finish. A worker that is lost is started again, twice.

        Raises AuditError when it is lost once more.
        """
        count = min(self._workers, len(shards))
        # Actors claim none of Ray's CPUs: decoding must never wait for them to leave.
        worker = ray.remote(_Worker).options(
            num_cpus=0,
            num_gpus=min(1.0, self._gpus / self._workers) if self._gpu else 0,
            max_restarts=_LOST_BEFORE_GIVING_UP,
            max_task_retries=_LOST_BEFORE_GIVING_UP,
        )
        actors: list[Any] = [worker.remote(make_step, finish) for _ in range(count)]  # Ray's type lacks our methods
        free = deque(actor for _ in range(_QUEUED) for actor in actors)
        most_decoded = max(1, self._all_cores // _DECODE_THREADS)  # beyond what free actors can take
        decoding = _call.options(num_cpus=1)
        todo = deque(shards)
        decoded: deque[Any] = deque()
        running: dict[Any, Any] = {}
        try:
            while todo or decoded or running:
                while todo and len(decoded) < len(free) + most_decoded:
                    decoded.append(decoding.remote(decode, _compact(todo.popleft())))
                while decoded and free:
                    actor = free.popleft()
                    running[actor.work.remote(decoded.popleft())] = actor
                (done, *_), _ = ray.wait(list(running), num_returns=1)
                free.append(running.pop(done))
                yield _result(done)
        finally:
            for given in running:  # else Ray says on the terminal that it will try again what dies with its actor
                ray.cancel(given)
            for actor in actors:
                ray.kill(actor)
            for waiting in decoded:
                ray.cancel(waiting)

    def map_tasks(
        self,
        function: Callable[[Item, Tell], Result],
        items: Sequence[Item],
        on_progress: Callable[[int, float], None],
    ) -> Generator[Result, None, None]:
        """See `Engine.map_tasks`; as they finish, each with an even share of the cores, or a GPU."""
        board: Any = ray.remote(_Board).options(num_cpus=0).remote()
        task = _call.options(num_cpus=self._cores_for(len(items)), num_gpus=1 if self._gpu else 0)
        running = {
            task.remote(function, item, _TellBoard(board, position)): position for position, item in enumerate(items)
        }
        try:
            while running:
                done, _ = ray.wait(list(running), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
                shares = ray.get(board.read.remote())
                for reference, position in running.items():
                    on_progress(position, 1.0 if reference in done else shares.get(position, 0.0))
                for reference in done:
                    del running[reference]
                    yield _result(reference)
        finally:
            for waiting in running:
                ray.cancel(waiting, force=True)
            ray.kill(board)


def _start() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # the first of several errors is raised; that is enough
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait leave their core to others
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own notices about its future defaults
        try:
            if os.environ.get("RAY_ADDRESS"):
                ray.init(**quiet)
            else:
                ray.init("local", num_cpus=usable_cores(), include_dashboard=False, **quiet)
        except (RayError, RuntimeError, ConnectionError, OSError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AuditError(f"Ray does not start: {first}; --engine inprocess works without it") from error


def _compact(shard: Shard) -> Shard:
    """Copy the rows: pickling a slice of the manifest would send the whole manifest along with every shard."""
    return Shard(shard.index, shard.rows.take(np.arange(shard.rows.num_rows)))


@ray.remote
def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    keep_freed_memory()
    return function(*arguments)


class _Worker:
    """Builds its step once and puts shard after shard through it."""

    def __init__(self, make_step: Callable[[], Step], finish: Finish) -> None:
        keep_freed_memory()
        self._make_step, self._finish = make_step, finish
        self._step: Step | None = None

    def work(self, shard: DecodedShard) -> Any:
        if self._step is None:  # here and not in __init__, whose errors would reach the driver as an actor's death
            self._step = self._make_step()
        return self._finish(shard, self._step(shard))


class _Board:
    """Where tasks write how far they are."""

    def __init__(self) -> None:
        self._done: dict[int, float] = {}

    def write(self, position: int, share: float) -> None:
        self._done[position] = share

    def read(self) -> dict[int, float]:
        return self._done


class _TellBoard:
    def __init__(self, board: Any, position: int) -> None:
        self._board, self._position = board, position
        self._told = 0.0

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now - self._told >= _SECONDS_BETWEEN_LOOKS:  # a task may tell after every batch
            self._told = now
            self._board.write.remote(self._position, share)


def _result(reference: Any) -> Any:
    """Fetch a result; what the worker raised is raised as itself."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause: BaseException = error
        while isinstance(cause, RayTaskError) and isinstance(cause.cause, BaseException):
            cause = cause.cause  # an error of decoding arrives inside that of the actor that waited for it
        if isinstance(cause, RayTaskError):
            raise
        with contextlib.suppress(AttributeError):  # exceptions with slots
            cause.add_note(str(error))  # the worker's traceback, for --debug
        raise cause from None
    except RayError as error:
        first = str(error).strip().splitlines()[0]
        raise AuditError(
            f"Ray lost a worker {_LOST_BEFORE_GIVING_UP + 1} times ({first}), most likely for want of memory; "
            "lower --batch-size or --workers and run again: finished shards are kept"
        ) from error
