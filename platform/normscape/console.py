"""How a run looks in the terminal: a bar with a time to finish, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from normscape.report.words import duration, significant

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal, at first; a stage that takes hours speaks less and less often."""
PATIENCE_SECONDS = 200.0
"""For each time this long that a stage has taken, its lines come `PLAIN_SECONDS` further apart."""
PLAIN_MOST = 30
"""Lines are never further apart than so many times `PLAIN_SECONDS`: five minutes."""
_WINDOW = 60
"""Samples, at least a second apart, from which the pace is taken."""
_HEADLINES = 4
"""Metrics shown when a stage has finished."""


def headlines(metrics: Mapping[str, float], most: int) -> str:
    """The first few metrics in a line; counts without decimals."""
    pairs = list(metrics.items())[:most]
    return ", ".join(f"{name} {int(value) if value == int(value) else significant(value)}" for name, value in pairs)


class Pace:
    """Time to finish, from the pace of the last minute or so.

    A stage may report several loops, one after the other: another unit or total, or a count that falls, begins anew.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._loop: tuple[int, str] = (0, "")
        self._done = 0

    def update(self, done: int, total: int, unit: str) -> float | None:
        """Seconds left; None before there is anything to tell from."""
        now = self._clock()
        if (total, unit) != self._loop or done < self._done:
            self._loop = (total, unit)
            self._samples.clear()
        self._done = done
        if not self._samples or now - self._samples[-1][0] >= 1.0:
            self._samples.append((now, done))
        began, before = self._samples[0]
        if done <= before or now <= began:
            return None
        return (total - done) * (now - began) / (done - before)


class _Left(ProgressColumn):
    """Time to finish."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("left", ""), style="progress.remaining")


class ConsoleListener:
    """Shows how a run goes on; the listener of `normscape run`.

    Args:
        stages: names of the stages of this run, in order.
        console: where to show it; lines instead of a bar when it is no terminal.
        quiet: only say what finished.
        verbose: also say what is measured on the way.

    Use it as a context manager, so that the terminal is left in order.
    """

    def __init__(self, stages: Sequence[str], console: Console, *, quiet: bool = False, verbose: bool = False) -> None:
        self._stages = list(stages)
        self._console = console
        self._quiet = quiet
        self._verbose = verbose
        self._pace = Pace()
        self._began = self._next_line = 0.0
        self._progress: Progress | None = None
        if console.is_terminal and not quiet:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"), _Left())
            self._progress = Progress(*columns, console=console, transient=True)
        self._task: Any = None

    def __enter__(self) -> ConsoleListener:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def stage_started(self, name: str, resumed: bool) -> None:
        """Show that a stage begins."""
        self._pace = Pace()
        self._began = time.monotonic()
        self._next_line = self._began + PLAIN_SECONDS
        if self._progress is not None:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(self._label(name), total=None, count="", left="")
        if not self._quiet:
            self._say(f"{self._label(name)}: {'goes on where it was cut off' if resumed else 'begins'}")

    def stage_skipped(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Show that a stage is up to date."""
        if not self._quiet:
            self._say(f"{self._label(name)}: up to date")

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Metrics by step are for the page, and would only scroll by; unless they are asked for."""
        if self._verbose:
            shown = ", ".join(f"{name} {significant(value)}" for name, value in values.items())
            self._say(f"{self._label(stage)}: at {step}: {shown}")

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """Move the bar, or say how far a stage is every few seconds."""
        seconds = self._pace.update(done, total, unit)
        left = f"{duration(seconds)} left" if seconds is not None else ""
        count = f"{done}/{total} {unit}{'es' if unit.endswith('tch') else 's'}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, count=count, left=left)
        elif not self._quiet and (now := time.monotonic()) >= self._next_line:
            self._next_line = now + PLAIN_SECONDS * min(max((now - self._began) / PATIENCE_SECONDS, 1.0), PLAIN_MOST)
            self._say(f"{self._label(stage)}: {count}" + (f", {left}" if left else ""))

    def stage_finished(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Say what came out."""
        metrics = manifest.get("metrics", {})
        shown = headlines(metrics, _HEADLINES)
        took = f"{self._label(name)}: finished in {duration(manifest.get('seconds'))}"
        self._say(f"{took}; {shown}" if shown else took)

    def failed(self, name: str, error: BaseException) -> None:
        """The command says why; here only the bar goes."""

    def _label(self, name: str) -> str:
        if name not in self._stages:
            return name
        return f"{self._stages.index(name) + 1}/{len(self._stages)} {name}"

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
