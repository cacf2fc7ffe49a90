from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

import jobs.progress
from jobs.progress import Reporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(jobs.progress, "time", clock)
    return clock


def reporter(*, terminal: bool, width: int = 80, quiet: bool = False) -> tuple[Reporter, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=width, highlight=False, color_system=None)
    return Reporter(quiet=quiet, console=console), file


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(clock: Clock) -> None:
    telling, file = reporter(terminal=False)
    with telling.step("judging", 1000) as advance:
        for _ in range(10):
            clock.now += 3
            advance(100)
    assert file.getvalue().splitlines() == [
        "judging: 400 of 1,000 images, 0:18 left, 33.3/s",
        "judging: 800 of 1,000 images, 0:06 left, 33.3/s",
        "judging: 1,000 of 1,000 images, 0:30, 33.3/s",
    ]


def test_what_an_earlier_run_did_does_not_count_for_the_speed(clock: Clock) -> None:
    telling, file = reporter(terminal=False)
    with telling.step("judging", 1000, done=900) as advance:
        clock.now += 20
        advance(50)
        clock.now += 20
        advance(50)
    assert file.getvalue().splitlines() == [
        "judging: 950 of 1,000 images, 0:20 left, 2.5/s",
        "judging: 1,000 of 1,000 images, 0:40, 2.5/s",
    ]


def test_parts_of_a_unit_count_and_hours_are_said(clock: Clock) -> None:
    telling, file = reporter(terminal=False)
    with telling.step("training", 5, unit="networks") as advance:
        clock.now += 3600
        advance(2.5)
    assert file.getvalue() == "training: 2 of 5 networks, 1:00:00 left\n"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_bar_fits_the_terminal_and_says_share_and_time_left(clock: Clock, width: int) -> None:
    telling, file = reporter(terminal=True, width=width)
    with telling.step("judging and tracing", 1000) as advance:
        clock.now += 40
        advance(250)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]", shown) if line.strip()]
    assert max(map(len, lines)) <= width
    last = lines[-1]
    assert "judging and tracing" in last
    assert "25%" in last
    assert "2:00 left" in last
    assert ("━" in last) == (width >= 60)


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_for_nothing_to_do_or_when_quiet(terminal: bool) -> None:
    for quiet, done in ((True, 0), (False, 10)):
        telling, file = reporter(terminal=terminal, quiet=quiet)
        with telling.step("judging", 10, done=done) as advance:
            advance(5)
        assert file.getvalue() == ""


def test_a_line_is_printed_as_it_is(clock: Clock) -> None:
    telling, file = reporter(terminal=True, width=40)
    telling.say("note: [bold]folder[/bold] " + "x" * 60)
    assert file.getvalue() == "note: [bold]folder[/bold] " + "x" * 60 + "\n"
