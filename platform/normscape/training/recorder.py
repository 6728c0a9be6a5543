"""What a training loop may tell the outside world, without knowing who listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Recorder(Protocol):
    """Receives metrics and progress; implemented by the stages' runner and by MLflow tracking."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record values measured at an absolute step."""

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        """Report that `done` of `total` units of work are finished."""

    def rewind(self, step: int) -> None:
        """Forget metrics of later steps; a loop that resumes from `step` records those again."""


class SilentRecorder:
    """Listens to nothing; for tests and library use."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Ignore the values."""

    def progress(self, done: int, total: int, unit: str = "step") -> None:
        """Ignore the progress."""

    def rewind(self, step: int) -> None:
        """Nothing to forget."""
