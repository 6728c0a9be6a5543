"""Who hears what a stage reports: the stage's own `metrics.jsonl`, and any number of listeners."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from normscape.stages.files import read_json, write_json, write_text

PROGRESS_NAME = "progress.json"
_PROGRESS_SECONDS = 5.0


class Listener(Protocol):
    """Hears how a run goes on: a progress bar, MLflow."""

    def stage_started(self, name: str, resumed: bool) -> None:
        """A stage begins, or goes on where it was cut off."""

    def stage_skipped(self, name: str, manifest: Mapping[str, Any]) -> None:
        """A stage is up to date."""

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """Values measured at an absolute step."""

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """`done` of `total` units are finished."""

    def stage_finished(self, name: str, manifest: Mapping[str, Any]) -> None:
        """A stage has ended well; its folder has its final name."""

    def failed(self, name: str, error: BaseException) -> None:
        """A stage was cut off."""


class Listeners:
    """Passes everything on to several listeners, in order."""

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self.listeners = tuple(listeners)

    def stage_started(self, name: str, resumed: bool) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.stage_started(name, resumed)

    def stage_skipped(self, name: str, manifest: Mapping[str, Any]) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.stage_skipped(name, manifest)

    def metrics(self, stage: str, values: Mapping[str, float], step: int) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.metrics(stage, values, step)

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.progress(stage, done, total, unit)

    def stage_finished(self, name: str, manifest: Mapping[str, Any]) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.stage_finished(name, manifest)

    def failed(self, name: str, error: BaseException) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.failed(name, error)


class JsonLinesRecorder:
    """Writes a stage's metrics to `metrics.jsonl` and passes them on.

    One line is `{"step": int, name: float, ...}`; a value that is not finite becomes null. When a stage resumes, what it
    measures again replaces what stood there for the same step and names, so that the finished file equals that of a run
    that was never cut off.

    Args:
        folder: The stage's folder.
        stage: The stage's name.
        listener: Hears everything too.
    """

    def __init__(self, folder: Path, stage: str, listener: Listener) -> None:
        self.path = folder / "metrics.jsonl"
        self._progress_path = folder / PROGRESS_NAME
        self._stage = stage
        self._listener = listener
        self._next_progress = 0.0
        self._progress = read_json(self._progress_path)
        self._begun = time.monotonic() - float(self._progress.get("seconds", 0.0))
        if self.path.exists():
            self._rewrite(self._lines())  # without a line that was cut off

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values measured at an absolute step."""
        plain = {name: float(value) for name, value in values.items()}
        line = {"step": int(step)} | {name: value if math.isfinite(value) else None for name, value in plain.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self._listener.metrics(self._stage, plain, int(step))

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        """Report that `done` of `total` units of work are finished; every few seconds it is noted for `normscape status`."""
        now = time.monotonic()
        if now >= self._next_progress:
            self._next_progress = now + _PROGRESS_SECONDS
            self._progress = {"done": done, "total": total, "unit": unit}
            self.note_seconds()
        self._listener.progress(self._stage, done, total, unit)

    @property
    def seconds(self) -> float:
        """Time spent in this stage, earlier attempts included as far as they were noted."""
        return time.monotonic() - self._begun

    def note_seconds(self) -> None:
        """Keep the progress and the time spent for `normscape status` and for a resumed stage."""
        write_json(self._progress_path, self._progress | {"seconds": round(self.seconds, 3)})

    def rewind(self, step: int) -> None:
        """Drop metrics of later steps; for a stage with a single loop, when it resumes from `step`."""
        if self.path.exists():
            self._rewrite([line for line in self._lines() if line["step"] <= step])

    def close(self) -> None:
        """Leave one line for each step and set of names, the newest, in the order of a run that was never cut off."""
        if self.path.exists():
            self._rewrite(list({(line["step"], *line): line for line in self._lines()}.values()))

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
        return lines

    def _rewrite(self, lines: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
