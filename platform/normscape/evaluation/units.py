"""Units of work: one detector fitted with one seed. What a unit depends on, and its files.

A finished unit lies in `<run>/evaluation/units/<detector>-<seed>-<key8>/`:

- `scores.parquet`, a row an image: detector, seed, role (healthy | synthetic | test), family (empty for a normal image),
  sample_id, subject, site, the known values in their units (`age_years`, `position_mm`, `angle_degrees`), size (mm or pixels) and
  contrast (intensity units) of the anomaly, label (0, 1), score (higher is more abnormal);
- `scans.parquet` and `scan_rates.parquet`, where whole scans were asked for (`normscape.evaluation.scans`);
- `unit.json`: what it depends on, thresholds, seconds, memory, and what was left out.

A unit that failed leaves `<detector>-<seed>-<key8>.failed.json` with its reason; it is tried again by the next evaluation.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from normscape.baselines import load_detector
from normscape.config import PluginConfig
from normscape.configio import digest, section_digest
from normscape.datasets.anomalies import load_family
from normscape.errors import DataError
from normscape.evaluation.experiment import Experiment, stages_of
from normscape.stages.files import discard, flush_folder, flush_to_disk, read_json, write_json

UNIT_VERSION = 1
"""Raised when units of older code are not to be taken for new ones."""
UNIT_NAME, SCORES_NAME, SCANS_NAME, RATES_NAME = "unit.json", "scores.parquet", "scans.parquet", "scan_rates.parquet"
_FIELDS = {
    "families", "training_families", "train_images", "network_images", "validation_images", "test_images", "validation_share",
    "false_positive_rates", "scans", "scan_families", "scan_stride",
}  # fmt: skip
"""Fields of the section `evaluation` that change a unit's results."""


@dataclass(frozen=True)
class Unit:
    """One detector with one seed."""

    detector: PluginConfig
    seed: int
    key: str
    """Digest of what it depends on."""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.detector.name}, seed {self.seed}"

    def folder(self, experiment: Experiment) -> Path:
        """Where it lies when it is finished."""
        return experiment.folder / "units" / f"{self.detector.name}-{self.seed}-{self.key[:8]}"


def plan_units(experiment: Experiment) -> list[Unit]:
    """All units of an evaluation: seed by seed, so that a first comparison is there early."""
    settings = experiment.config.evaluation
    shared = _shared(experiment)
    return [Unit(entry, seed, _key(experiment, entry, seed, shared)) for seed in settings.seeds for entry in settings.detectors]


UNREAD = (
    *(f"projection.{name}" for name in ("test_samples", "calibration_samples", "curve_images", "curve_steps")),
    *(f"scoring.{name}" for name in ("level", "bootstrap_samples")),
)
"""Settings of the stages of a run that no detector of an evaluation reads."""


def _shared(experiment: Experiment) -> dict[str, Any]:
    """What every unit depends on: data and split, conditions, families, budgets."""
    config = experiment.config
    return {
        "version": UNIT_VERSION,
        "prepare": experiment.keys["prepare"],
        "seed": config.seed,
        "conditions": [[attribute.name, attribute.column] for attribute in config.value_attributes],
        "evaluation": config.evaluation.model_dump(mode="json", include=_FIELDS),
        "families": [_code_of(load_family(entry)) for entry in config.evaluation.families],
    }


def _key(experiment: Experiment, entry: PluginConfig, seed: int, shared: Mapping[str, Any]) -> str:
    detector = load_detector(entry)
    stages = {name: experiment.keys[name] for name in stages_of(detector) if name in experiment.keys}
    own = {"detector": entry.model_dump(mode="json"), "code": _code_of(detector), "stages": stages, "seed": seed}
    sections = tuple(getattr(detector, "sections", ()))
    if sections:
        own["sections"] = section_digest(experiment.config, sections, UNREAD)
    return digest([shared, own])


def _code_of(thing: object) -> str:
    """Digest of the file that a plug-in's class stands in, so that a changed detector is evaluated anew."""
    module = sys.modules.get(type(thing).__module__) or importlib.import_module(type(thing).__module__)
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def finished_unit(experiment: Experiment, unit: Unit) -> dict[str, Any] | None:
    """What `unit.json` says of a finished unit; None when it is not finished, or was finished with other stages."""
    about = read_json(unit.folder(experiment) / UNIT_NAME)
    if about.get("key") != unit.key:
        return None
    same = all(experiment.keys.get(name) == key for name, key in about.get("stages", {}).items())
    return about if same else None


def write_unit(experiment: Experiment, unit: Unit, tables: Mapping[str, pa.Table], about: Mapping[str, Any]) -> None:
    """Write a finished unit: aside first, then under its name, so that it is whole or absent.

    Args:
        experiment: what is evaluated.
        unit: which unit.
        tables: file name to table.
        about: content of `unit.json`.
    """
    final = unit.folder(experiment)
    partial = final.with_name(f"{final.name}.{os.getpid()}.partial")
    discard(partial)
    partial.mkdir(parents=True)
    for name, table in tables.items():
        pq.write_table(table, partial / name)
    write_json(partial / UNIT_NAME, dict(about) | {"key": unit.key})
    flush_folder(partial)
    discard(final)
    os.replace(partial, final)
    flush_to_disk(final.parent)
    failure_path(experiment, unit).unlink(missing_ok=True)


def failure_path(experiment: Experiment, unit: Unit) -> Path:
    """Where the reason of a failure is kept."""
    final = unit.folder(experiment)
    return final.with_name(final.name + ".failed.json")


def write_failure(experiment: Experiment, unit: Unit, reason: str, trace: str) -> None:
    """Keep why a unit failed."""
    path = failure_path(experiment, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"detector": unit.detector.name, "seed": unit.seed, "key": unit.key, "reason": reason, "trace": trace})


def read_table(experiment: Experiment, unit: Unit, name: str) -> pa.Table | None:
    """A table of a finished unit; None when it has no such table.

    Raises:
        DataError: the file is damaged.
    """
    path = unit.folder(experiment) / name
    if not path.exists():
        return None
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable table ({error}); remove the folder and evaluate again") from error


def discard_leftovers(folder: Path) -> None:
    """Remove what a killed evaluation left half-written; the folder must be held."""
    for path in (*folder.glob("units/*.partial"), *folder.glob("units/*.trash")):
        discard(path)
