"""Choosing between detectors and settings: areas on synthetic validation alone. The locked test is not opened.

In `<run>/evaluation/validation/` lies one table of scores a unit, `<detector>-<seed>-<key8>.parquet` (columns of `scores.parquet`
in `normscape.evaluation.units`), which is not made again while the stages that the detector read are the same, and
`choice-<key8>.parquet` for each comparison.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from normscape.config import Config
from normscape.configio import digest
from normscape.errors import UserError
from normscape.evaluation.experiment import Experiment, Workbench, find_experiment
from normscape.evaluation.failures import DetectorFailed
from normscape.evaluation.measures import areas
from normscape.evaluation.running import Scorer, UnitProgress, fit_unit
from normscape.evaluation.scorebook import Estimate, RoleScores
from normscape.evaluation.splits import SYNTHETIC
from normscape.evaluation.units import Unit, plan_units
from normscape.stages.files import locked

FOLDER_NAME = "validation"
CHOICE_SCHEMA = pa.schema(
    [("detector", pa.string()), ("family", pa.string())]
    + [(name, pa.float64()) for name in ("auroc", "low", "high", "spread")]
    + [("subjects", pa.int64())]
)
"""AUROC on synthetic validation: mean over seeds, 95 % by resampling subjects, standard deviation over seeds."""
_READ = b"stages"
"""Key in a table's metadata: stages that the detector asked for, to their keys."""
_STREAM = 4
"""Keeps the seed of the resampling apart from others."""


@dataclass(frozen=True)
class Choice:
    """What there is to choose from."""

    areas: dict[str, dict[str, Estimate]]
    """Detector to family, or mean over families, to AUROC."""
    subjects: int
    """Whose images were scored."""
    table: Path
    """The same as a file."""
    failures: dict[str, str]
    """Name of a unit to why it failed."""


def compare_on_validation(
    config: Config, runs_dir: Path, *, progress: UnitProgress | None = None, config_path: str = "CONFIG"
) -> Choice:
    """Fit the detectors of a configuration, and compare them on synthetic validation.

    Args:
        config: the experiment, with its section `evaluation`.
        runs_dir: holds run folders; stages that detectors read must be finished there.
        progress: told how far a unit is.
        config_path: the configuration as a person gave it, for messages.

    Raises:
        UserError: stages are missing, the folder is in use, or no detector could be fitted.
        DataError: too few subjects, families that do not fit the images.
        ConfigError: detectors or families that cannot be loaded.
    """
    experiment = find_experiment(config, runs_dir, command=config_path)
    units = plan_units(experiment)
    folder = experiment.folder / FOLDER_NAME
    folder.mkdir(parents=True, exist_ok=True)
    with locked(experiment.folder):
        tables, failures = _scored(experiment, units, folder, progress)
        if not tables:
            raise UserError("no detector could be fitted: " + "; ".join(f"{name}: {why}" for name, why in failures.items()))
        settings = config.evaluation
        seed = int(np.random.SeedSequence([config.seed, _STREAM]).generate_state(1)[0])
        role = RoleScores(tables, resamples=settings.bootstrap_samples, seed=seed)
        found = areas(role, settings.training_families)
        subjects = len(set(role.subject.tolist()))
        path = folder / f"choice-{digest([unit.key for unit in units])[:8]}.parquet"
        _write(pa.Table.from_pylist(_rows(found, subjects), schema=CHOICE_SCHEMA), path)
    return Choice(found, subjects, path, failures)


def _scored(
    experiment: Experiment, units: Sequence[Unit], folder: Path, progress: UnitProgress | None
) -> tuple[dict[str, list[pa.Table]], dict[str, str]]:
    """Tables of scores of each detector, one a seed, and why units failed."""
    tables: dict[str, list[pa.Table]] = {}
    failures: dict[str, str] = {}
    bench: Workbench | None = None
    for unit in units:
        path = folder / f"{unit.detector.name}-{unit.seed}-{unit.key[:8]}.parquet"
        table = _made_before(experiment, path)
        if table is None:
            if bench is None:
                bench = Workbench(experiment)
                bench.try_families()
            tell = partial(progress, unit) if progress else (lambda done, total, what: None)
            try:
                fitted = fit_unit(bench, unit, tell)
                table = Scorer(bench, fitted.detector, unit, tell).table(bench.validation(SYNTHETIC))
            except DetectorFailed as failed:
                failures[unit.name] = str(failed)
                continue
            read = {name: experiment.keys[name] for name in sorted(fitted.folders.asked & set(experiment.keys))}
            _write(table.replace_schema_metadata({_READ: json.dumps(read)}), path)
        tables.setdefault(unit.detector.name, []).append(table)
    return tables, failures


def _made_before(experiment: Experiment, path: Path) -> pa.Table | None:
    """A unit's table; None where there is none, or its detector read stages that are others now.

    Stages that a detector says it reads are part of the unit's key; one may read more.
    """
    if not path.exists():
        return None
    table = pq.read_table(path)
    read = json.loads((table.schema.metadata or {}).get(_READ, b"{}"))
    return table if all(experiment.keys.get(name) == key for name, key in read.items()) else None


def _rows(found: dict[str, dict[str, Estimate]], subjects: int) -> list[dict[str, object]]:
    """Rows of `CHOICE_SCHEMA`."""
    return [
        {
            "detector": detector, "family": family, "auroc": one.value,
            "low": one.interval[0], "high": one.interval[1], "spread": one.spread, "subjects": subjects,
        }
        for detector, families in found.items()
        for family, one in families.items()
    ]  # fmt: skip


def _write(table: pa.Table, path: Path) -> None:
    """Write a table, whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    pq.write_table(table, aside)
    os.replace(aside, path)
