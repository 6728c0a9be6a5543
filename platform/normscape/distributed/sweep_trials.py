"""What is known of a sweep's trials, as open files: `trials/<key>/trial.json`, written by the driver, one writer for each file.

A trial's key is the digest of its settings, so that a sweep that was cut off finds what it has tried before by what it tries, and
nothing of Ray's own state is ever read back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from normscape.configio import digest
from normscape.stages.files import read_json, write_json

Point = dict[str, Any]
"""Parameter name -> number or word."""
Report = dict[str, float]
"""`step`, `score` and what else was measured then."""
Status = Literal["running", "finished", "stopped", "failed"]

RECORD_NAME = "trial.json"
REPORTS_NAME = "reports.json"


@dataclass
class Trial:
    """One setting that was tried."""

    number: int
    """From 1, in the order of their starts."""
    point: Point
    origin: str = "search"
    """Who proposed it: `search`, `guess` (from real distances), `experiment` (its own values)."""
    status: Status = "running"
    """`stopped` was cut early for being worse than others; `running` was cut off."""
    reports: list[Report] = field(default_factory=list)
    error: str = ""
    """What went wrong, with the trace."""
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """Name of its folder."""
        return point_key(self.point)

    @property
    def step(self) -> int:
        """Where it was measured last; 0 when it never was."""
        return int(self.reports[-1]["step"]) if self.reports else 0

    @property
    def score(self) -> float | None:
        """Its last score."""
        return self.reports[-1]["score"] if self.reports else None

    @property
    def reason(self) -> str:
        """The error without its trace."""
        lines = [line for line in self.error.strip().splitlines() if line.strip()]
        starts = [
            i for i, line in enumerate(lines) if not line.startswith(" ") and ": " in line and "Error" in line.split(": ")[0]
        ]
        return " ".join(line.strip() for line in lines[starts[-1] :]) if starts else " ".join(lines[-1:])

    def add(self, report: Report) -> bool:
        """Take a report, unless there is one of its step or a later one: a resumed trial tells again what it had measured."""
        if report["step"] <= self.step:
            return False
        self.reports.append(report)
        return True


def point_key(point: Mapping[str, Any]) -> str:
    """Twelve hex digits that stand for the settings."""
    return digest(dict(point))[:12]


def trial_folder(sweep_folder: Path, point: Mapping[str, Any]) -> Path:
    """Where a trial keeps its files."""
    return sweep_folder / "trials" / point_key(point)


def write_trial(sweep_folder: Path, trial: Trial) -> None:
    """Write `trial.json`, whole or not at all."""
    folder = trial_folder(sweep_folder, trial.point)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD_NAME, asdict(trial))


def read_trials(sweep_folder: Path) -> list[Trial]:
    """All trials that were started, in order."""
    found = [read_json(path) for path in sweep_folder.glob(f"trials/*/{RECORD_NAME}")]
    return sorted((Trial(**record) for record in found if record), key=lambda trial: trial.number)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The highest score among those that went to the end, so that like is compared with like; the first of equal ones."""
    scored = [trial for trial in trials if trial.status in ("finished", "stopped") and trial.score is not None]
    ended = [trial for trial in scored if trial.status == "finished"] or scored
    return max(ended, key=lambda trial: (trial.score, -trial.number), default=None)


class Reports:
    """What a trial measured itself, in its own folder: it goes on after them when it is started again.

    Args:
        folder: the trial's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / REPORTS_NAME
        self.known: list[Report] = read_json(self.path).get("reports", [])

    @property
    def step(self) -> int:
        """Where it was measured last."""
        return int(self.known[-1]["step"]) if self.known else 0

    def add(self, report: Report) -> None:
        """Keep a report."""
        self.known.append(report)
        write_json(self.path, {"reports": self.known})
