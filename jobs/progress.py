"""Progress on stderr: a bar with time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0
_WIDE = 60
"""Columns from which a bar and a speed have room beside title, share and time left."""

Advance = Callable[[float], None]
"""Told how many more units are done; parts of a unit count."""


class Reporter:
    """Tells how far each step is; `quiet` leaves only what the user should know of."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._quiet = quiet

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str, total: float, *, done: float = 0, unit: str = "images") -> Iterator[Advance]:
        """Show a step of `total` units, of which `done` were done before; the value is told what is done more."""
        if self._quiet or total <= done:
            yield lambda _: None
        elif self._console.is_terminal:
            pace = _Pace(total, done)
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), TaskProgressColumn(), _Words(pace, unit)]
            if self._console.width >= _WIDE:
                columns.insert(1, BarColumn(bar_width=None))
            # refreshed by its own thread, so that the time left also falls while a long unit is at work
            with Progress(*columns, console=self._console, expand=self._console.width >= _WIDE) as bar:
                task = bar.add_task(title, total=total)
                bar.update(task, completed=done)

                def advance(units: float) -> None:
                    pace.add(units)
                    bar.advance(task, units)

                yield advance
        else:
            yield self._lines(title, _Pace(total, done), unit)

    def _lines(self, title: str, pace: _Pace, unit: str) -> Advance:
        said = time.monotonic()

        def advance(units: float) -> None:
            nonlocal said
            pace.add(units)
            now = time.monotonic()
            if pace.left_to_do > 0 and now - said < _SECONDS_BETWEEN_LINES:
                return
            said = now
            self.say(f"{title}: {pace.done:,.0f} of {pace.total:,.0f} {unit}, {pace.words(unit)}")

        return advance


class _Pace:
    """How fast units are done, those of an earlier run left out."""

    def __init__(self, total: float, done: float) -> None:
        self.total = total
        self.done = done
        self._before = done
        self._began = time.monotonic()

    def add(self, units: float) -> None:
        self.done += units

    @property
    def left_to_do(self) -> float:
        return max(0.0, self.total - self.done)

    def words(self, unit: str) -> str:
        """Return time left and, for images, speed: `1:05 left, 12.3/s`; once all is done the time that it took."""
        seconds = time.monotonic() - self._began
        fresh = self.done - self._before
        if fresh <= 0:
            return "starting"
        time_said = f"{_clock(seconds / fresh * self.left_to_do)} left" if self.left_to_do > 1e-9 else _clock(seconds)
        speed = f", {fresh / max(seconds, 1e-9):.1f}/s" if unit == "images" else ""
        return time_said + speed


class _Words(ProgressColumn):
    def __init__(self, pace: _Pace, unit: str) -> None:
        super().__init__()
        self._pace, self._unit = pace, unit

    def render(self, task: Task) -> Text:
        return Text(self._pace.words(self._unit), no_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
