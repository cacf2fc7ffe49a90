"""The audit in this process, for tests, debugging, and machines without Ray."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs.engine import Decode, Finish, Item, Result, Step, Tell
from jobs.machine import keep_freed_memory, usable_cores
from pipeline.dataset.manifest import Shard


class InProcess:
    """Runs shards one after the other; the next is decoded while one is judged."""

    def __enter__(self) -> InProcess:
        """Nothing to start; from now on this process keeps the memory that it frees."""
        keep_freed_memory()
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to end."""

    @property
    def workers(self) -> int:
        """One: this process."""
        return 1

    @property
    def threads(self) -> int:
        """Half of the cores: the next shard is decoded on the others."""
        return max(1, usable_cores() // 2)

    def threads_for(self, tasks: int) -> int:
        """All cores: tasks run one after the other, and nothing beside them."""
        return usable_cores()

    def map_shards(
        self, shards: Sequence[Shard], decode: Decode, make_step: Callable[[], Step], finish: Finish
    ) -> Generator[Any, None, None]:
        """See `Engine.map_shards`; in order."""
        if not shards:
            return
        step = make_step()
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(decode, shards[0])
            for following in [*shards[1:], None]:
                decoded = waiting.result()
                if following is not None:
                    waiting = ahead.submit(decode, following)
                yield finish(decoded, step(decoded))

    def map_tasks(
        self,
        function: Callable[[Item, Tell], Result],
        items: Sequence[Item],
        on_progress: Callable[[int, float], None],
    ) -> Generator[Result, None, None]:
        """See `Engine.map_tasks`; in order."""
        for position, item in enumerate(items):
            result = function(item, functools.partial(on_progress, position))
            on_progress(position, 1.0)
            yield result
