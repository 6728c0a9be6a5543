"""Fitted detectors with the columns that they read, from the folder of stage `score`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normscape.errors import DataError
from normscape.scoring.detectors import MAIN_DETECTORS, Array, Detector, ThresholdDetector
from normscape.scoring.evidence import EvidenceDetector
from normscape.scoring.forest import ForestDetector
from normscape.scoring.pooled import PooledForest
from normscape.stages.files import read_json


@dataclass(frozen=True)
class FittedDetector:
    """A detector, the columns it reads, and its threshold inside."""

    detector: Detector
    features: tuple[str, ...]

    def matrix(self, columns: Mapping[str, NDArray[np.float32]]) -> Array:
        """Columns of a batch, `(B,)` each, as features `(B, F)` in the detector's order.

        Raises:
            DataError: a column is missing.
        """
        missing = [name for name in self.features if name not in columns]
        if missing:
            raise DataError(
                f"a detector asks for {', '.join(missing)}, which the projection does not give; was it fitted to another?"
            )
        return np.stack([columns[name].astype(np.float64) for name in self.features], axis=1)


def load_detectors(folder: Path) -> dict[str, FittedDetector]:
    """The detectors of a finished `score` folder.

    Raises:
        DataError: a file is missing or damaged.
    """
    described = read_json(folder / "detectors.json")
    if MAIN_DETECTORS[-1] not in described:
        raise DataError(f"{folder / 'detectors.json'}: expected the detectors' descriptions, found no `{MAIN_DETECTORS[-1]}`")
    found: dict[str, FittedDetector] = {}
    for name, entry in described.items():
        if entry.get("fitted_to") == "ForestDetector":
            forest, features = ForestDetector.load(folder / f"{name}.skops")
            found[name] = FittedDetector(forest, tuple(features))
        elif entry.get("fitted_to") == "ThresholdDetector":
            found[name] = FittedDetector(ThresholdDetector.load(folder / f"{name}.json"), tuple(entry["features"]))
        elif entry.get("fitted_to") == "EvidenceDetector":
            found[name] = FittedDetector(EvidenceDetector.load(folder / f"{name}.safetensors"), tuple(entry["features"]))
        elif entry.get("fitted_to") == "PooledForest":  # it comes after the forest that it listens to
            member = found[MAIN_DETECTORS[-1]].detector
            assert isinstance(member, ForestDetector)
            found[name] = FittedDetector(PooledForest.load(folder / f"{name}.json", member), tuple(entry["features"]))
    return found
