"""What an evaluation left, read for its page: tables as rows, and names for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from normscape.errors import DataError
from normscape.evaluation.locked import LOCKED
from normscape.evaluation.results import ABOUT_NAME
from normscape.evaluation.scorebook import ALL, NEW
from normscape.report.thesis import DATA_NAMES
from normscape.report.words import title
from normscape.stages.score import THESIS

Row = Mapping[str, Any]
THESIS_FAMILY = "standard"
"""The family of the thesis's own task."""
THESIS_DETECTORS = {"none": "l1", "synthetic": "forest"}
"""Kind of supervision to the thesis's detector: a threshold on L1, and a forest fitted to blots."""
_TABLES = ("metrics", "strata", "roc", "paired", "costs", "failures")


@dataclass(frozen=True)
class Board:
    """An evaluation's tables; rows are as their modules describe them."""

    about: Mapping[str, Any]
    """`evaluation.json`."""
    metrics: Sequence[Row]
    strata: Sequence[Row]
    roc: Sequence[Row]
    paired: Sequence[Row]
    costs: Sequence[Row]
    failures: Sequence[Row]

    @cached_property
    def _found(self) -> dict[tuple[str, str, str, str, float | None], Row]:
        return {(r["role"], r["detector"], r["family"], r["metric"], r["rate"]): r for r in self.metrics}

    def metric(self, role: str, detector: str, family: str, metric: str, rate: float | None = None) -> Row | None:
        """One row of `metrics.parquet`; None where it is not."""
        return self._found.get((role, detector, family, metric, rate))

    @property
    def rates(self) -> list[float]:
        """Promised rates of false positives."""
        return list(self.about["false_positive_rates"])

    @property
    def families(self) -> list[str]:
        """Families with results, in order."""
        present = {row["family"] for row in self.metrics if row["role"] == LOCKED}
        return [name for name in self.about["families"] if name in present]

    @property
    def columns(self) -> list[str]:
        """The families, before them their means; a mean of one family is left out."""
        present = {row["family"] for row in self.metrics if row["role"] == LOCKED}
        means = [name for name in (ALL, NEW) if name in present]
        return [*(means if len(self.families) > 1 else []), *self.families]

    def supervision(self, detector: str) -> str:
        """none or synthetic."""
        return next(str(row["supervision"]) for row in self.costs if row["detector"] == detector)

    def ranked(self, supervision: str | None = None, role: str = LOCKED) -> list[str]:
        """Detectors, the best first, by their mean area over all families.

        Args:
            supervision: only of this kind.
            role: whose areas count.
        """
        names = [name for name in self.about["detectors"] if supervision in (None, self.supervision(name))]

        def area(name: str) -> float:
            row = self.metric(role, name, ALL, "auroc")
            return -1.0 if row is None or row["value"] is None else float(row["value"])

        return sorted(names, key=area, reverse=True)

    @property
    def data_name(self) -> str:
        """What the images are, plainly: a simulated cohort is called simulated."""
        source = str(self.about["source"])
        return DATA_NAMES.get(source) or str(self.about["cohort"]) or source

    def thesis(self, supervision: str) -> tuple[str, float] | None:
        """The thesis's detector of this kind, and its area on the same task; None where it has none."""
        detector = THESIS_DETECTORS[supervision]
        area = THESIS.get(str(self.about["source"]), {}).get((detector, "test", "auroc"))
        return None if area is None or THESIS_FAMILY not in self.families else (detector, area)


def read_board(folder: Path) -> Board:
    """Read a folder of results.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        about = json.loads((folder / ABOUT_NAME).read_text(encoding="utf-8"))
        return Board(about, *(pq.read_table(folder / f"{name}.parquet").to_pylist() for name in _TABLES))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder}: expected the results of an evaluation ({error})") from error


def said(name: str) -> str:
    """A detector or family for people: `white_matter` -> `White matter`."""
    return title(name.replace("_", " "))
