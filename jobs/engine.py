"""What can run an audit's steps: this process, or Ray. Both do the same work on the same shards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol, TypeVar

from pipeline.dataset.images import DecodedShard
from pipeline.dataset.manifest import Shard

Item = TypeVar("Item")
Result = TypeVar("Result")

Decode = Callable[[Shard], DecodedShard]
Step = Callable[[DecodedShard], Any]
Finish = Callable[[DecodedShard, Any], Any]
"""Decoded shard and what the step made of it -> a small result; writes files, and runs on the worker."""
Tell = Callable[[float], None]
"""Told by a task how much of it is done, in [0, 1]."""


class Engine(Protocol):
    """Runs shards through decode, step and finish. Leaving the `with` block ends what it started."""

    def __enter__(self) -> Engine:
        """Start what is needed."""

    def __exit__(self, *exception: object) -> None:
        """End what was started here, and nothing else."""

    @property
    def workers(self) -> int:
        """Judges at work at once."""

    @property
    def threads(self) -> int:
        """CPU threads each worker should use, so that all workers together fill the machine and no more."""

    def threads_for(self, tasks: int) -> int:
        """CPU threads each of `tasks` tasks should use; known before they start."""

    def map_shards(
        self, shards: Sequence[Shard], decode: Decode, make_step: Callable[[], Step], finish: Finish
    ) -> Generator[Any, None, None]:
        """Yield what `finish` returns for each shard, in any order; `make_step` is called once per worker.

        All functions can be pickled. A shard may be done twice where a worker is lost on the way, so `finish` must
        leave the same whichever comes last. What a function raises is raised here as itself; close the iterator to
        end the work early.
        """

    def map_tasks(
        self,
        function: Callable[[Item, Tell], Result],
        items: Sequence[Item],
        on_progress: Callable[[int, float], None],
    ) -> Generator[Result, None, None]:
        """Yield `function(item, tell)` for each item, in any order.

        `on_progress` hears, in this process, an item's position and the share of it that is done; 1 once it is.
        """
