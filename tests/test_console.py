"""Progress in the terminal, and where there is none."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from normscape import console
from normscape.console import ConsoleListener, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_to_finish_follows_the_pace() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.update(10, 100, "step") is None  # a resumed loop begins in the middle: nothing to tell from yet
    clock.now = 5.0
    assert pace.update(20, 100, "step") == pytest.approx(40.0)
    for done in range(21, 90):  # ten times slower from here on; the old pace is forgotten
        clock.now += 5.0
        left = pace.update(done, 100, "step")
    assert left == pytest.approx(11 * 5.0)


@pytest.mark.parametrize("second", [(1, 50, "image"), (1, 100, "image"), (1, 100, "step")])
def test_another_loop_begins_anew(second: tuple[int, int, str]) -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.update(0, 100, "step")
    clock.now = 10.0
    pace.update(90, 100, "step")
    clock.now = 20.0
    assert pace.update(*second) is None


def listen(terminal: bool, **options: bool) -> tuple[ConsoleListener, io.StringIO]:
    out = io.StringIO()
    return ConsoleListener(["first", "second"], Console(file=out, force_terminal=terminal, width=100), **options), out


def play(listener: ConsoleListener) -> None:
    with listener:
        listener.stage_skipped("first", {"stage": "first"})
        listener.stage_started("second", True)
        listener.progress("second", 1, 4, "step")
        listener.progress("second", 2, 4, "step")
        listener.metrics("second", {"loss": 1.0}, 2)
        listener.stage_finished("second", {"metrics": {"error": 1.25, "images": 11640.0}, "seconds": 75.0})


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_SECONDS", 0.0)
    listener, out = listen(terminal=False)
    play(listener)
    lines = out.getvalue().splitlines()
    assert lines[:3] == ["1/2 first: up to date", "2/2 second: goes on where it was cut off", "2/2 second: 1/4 steps"]
    assert lines[3].startswith("2/2 second: 2/4 steps, ")
    assert lines[3].endswith(" left")
    assert lines[4:] == ["2/2 second: finished in 1 min 15 s; error 1.25, images 11640"]


def test_lines_come_seldom() -> None:
    listener, out = listen(terminal=False)
    play(listener)
    assert "steps" not in out.getvalue()


def test_a_bar_in_a_terminal() -> None:
    listener, out = listen(terminal=True)
    play(listener)
    assert "2/4 steps" in out.getvalue()
    assert "finished in 1 min 15 s" in out.getvalue()


def test_quiet_says_what_finished_and_verbose_what_was_measured() -> None:
    listener, out = listen(terminal=False, quiet=True)
    play(listener)
    assert [line.split(";")[0] for line in out.getvalue().splitlines()] == ["2/2 second: finished in 1 min 15 s"]
    listener, out = listen(terminal=False, verbose=True)
    play(listener)
    assert "2/2 second: at 2: loss 1" in out.getvalue().splitlines()


def test_a_log_has_a_line_now_and_then_and_less_often_in_long_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step a second for ten hours: every ten seconds at first, every five minutes in the end, and no control characters."""
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    listener, out = listen(terminal=False)
    with listener:
        listener.stage_started("first", False)
        for second in range(1, 36_001):
            clock.now = float(second)
            listener.progress("first", second, 36_000, "step")
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()
    told = [int(line.split(": ")[1].split("/")[0]) for line in out.getvalue().splitlines() if "steps" in line]
    gaps = [b - a for a, b in itertools.pairwise(told)]
    assert told[0] == 10
    assert gaps[:15] == [10] * 15
    assert sorted(gaps) == gaps
    assert gaps[-1] == 300
    assert 100 < len(told) < 250
