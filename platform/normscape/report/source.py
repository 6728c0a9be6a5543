"""Reading what the stages left: every reader gives None where a file is missing, so that a page can say so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from normscape.config import Config

Table = dict[str, np.ndarray]
"""A table as columns, all of one length; null numbers are NaN, list columns are arrays of objects."""


@dataclass(frozen=True)
class Source:
    """The finished stage folders of one run.

    Args:
        config: the experiment.
        folders: stage name -> finished folder; stages may be absent.
    """

    config: Config
    folders: Mapping[str, Path]
    _cache: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def path(self, stage: str, name: str) -> Path | None:
        """Path of a file of a stage, None when it is not there."""
        folder = self.folders.get(stage)
        path = folder / name if folder is not None else None
        return path if path is not None and path.exists() else None

    def table(self, stage: str, name: str, *needed: str) -> Table | None:
        """A Parquet table that has at least the columns `needed` and one row, else None."""
        path = self.path(stage, name)
        if path is None:
            return None
        key = (stage, name)
        if key not in self._cache:
            names = [n for n in pq.read_schema(path).names if not n.startswith("coordinates/")]
            columns = pq.read_table(path, columns=names)
            self._cache[key] = {n: columns.column(n).to_numpy() for n in names}
        table: Table = self._cache[key]
        return table if all(n in table for n in needed) and rows(table) else None

    def json(self, stage: str, name: str) -> dict[str, Any]:
        """A JSON object, empty when it is missing."""
        path = self.path(stage, name)
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        return found if isinstance(found, dict) else {}

    def array(self, stage: str, name: str) -> np.ndarray | None:
        """A `.npy` array, memory-mapped."""
        path = self.path(stage, name)
        return None if path is None else np.load(path, mmap_mode="r", allow_pickle=False)

    def curves(self, stage: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Metric -> (steps, values) from `metrics.jsonl`; a step that was recorded twice counts once, the last time."""
        path = self.path(stage, "metrics.jsonl")
        points: dict[str, dict[int, float]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path is not None else []:
            row = json.loads(line)
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    points.setdefault(name, {})[int(row["step"])] = float(value)
        return {n: (np.array(sorted(p)), np.array([p[step] for step in sorted(p)])) for n, p in points.items()}

    def manifests(self) -> dict[str, dict[str, Any]]:
        """Stage -> manifest, in the order of the stages."""
        return {stage: self.json(stage, "manifest.json") for stage in self.folders}


def rows(table: Table) -> int:
    """Number of rows."""
    return len(next(iter(table.values()))) if table else 0


def where(table: Table, **equal: Any) -> Table:
    """Rows in which every named column has the given value."""
    mask = np.ones(rows(table), dtype=bool)
    for name, value in equal.items():
        mask &= table[name] == value
    return {name: column[mask] for name, column in table.items()}


def unique(column: np.ndarray) -> list[Any]:
    """Distinct values in order of appearance."""
    return list(dict.fromkeys(column.tolist()))
