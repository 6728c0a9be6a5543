"""What every detector can do, the simplest one, and scores out of fold (the interface of PyOD)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from normscape.errors import DataError
from normscape.scoring.thresholds import best_accuracy_threshold

MAIN_DETECTORS = ("pooled", "forest")
"""The first of them that a run has gives the anomaly score: the forest on the features that `scoring.features` names, heard
together with the conditional network where there is one."""
Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Groups = NDArray[Any]


def main_detector(names: Iterable[str]) -> str:
    """The one of these detectors that gives the anomaly score.

    Raises:
        ValueError: none of them does.
    """
    there = set(names)
    for name in MAIN_DETECTORS:
        if name in there:
            return name
    raise ValueError(f"expected one of {', '.join(MAIN_DETECTORS)}, found {', '.join(sorted(there)) or 'no detector'}")


class Detector(Protocol):
    """Turns features `(N, F)` into a score, higher being more abnormal; attributes ending in `_` exist after `fit`."""

    threshold_: float

    def fit(self, features: Array, label: Labels, groups: Groups) -> Self:
        """Learn from training rows; rows of one group (subject) are never split."""

    def calibrate(self, features: Array, label: Labels) -> Self:
        """Choose `threshold_` anew, on rows of subjects that neither `fit` nor any network has seen."""

    def decision_function(self, features: Array) -> Array:
        """Scores `(N,)`."""

    def predict(self, features: Array) -> Labels:
        """1 where the score exceeds `threshold_`, else 0."""


class ThresholdDetector:
    """One feature against a threshold: the thesis's L1 baseline (IV.A.3). The threshold has the best training accuracy."""

    threshold_: float

    def fit(self, features: Array, label: Labels, groups: Groups | None = None) -> Self:
        """Choose the threshold; `features` is `(N, 1)`."""
        return self.calibrate(features, label)

    def calibrate(self, features: Array, label: Labels) -> Self:
        """The threshold of the best accuracy on these rows."""
        self.threshold_ = best_accuracy_threshold(label, self.decision_function(features))
        return self

    def decision_function(self, features: Array) -> Array:
        """The feature itself, `(N,)`."""
        if features.ndim != 2 or features.shape[1] != 1:
            raise ValueError(f"expected features (N, 1), found {features.shape}")
        return features[:, 0]

    def predict(self, features: Array) -> Labels:
        """1 where the feature exceeds the threshold."""
        return (self.decision_function(features) > self.threshold_).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the threshold as JSON."""
        path.write_text(json.dumps({"detector": "threshold", "threshold": self.threshold_}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not such a JSON file.
        """
        detector = cls()
        try:
            detector.threshold_ = float(json.loads(path.read_text(encoding="utf-8"))["threshold"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: expected the threshold of a detector as JSON, found something else ({error})") from error
        return detector


def out_of_fold(
    make: Callable[[], Detector],
    features: Array,
    label: Labels,
    groups: Groups,
    *,
    folds: int,
    seed: int,
    learned: NDArray[np.bool_] | None = None,
) -> tuple[Array, Labels]:
    """Scores and predictions of every row by a detector that was fitted without the row's group.

    Args:
        make: gives an unfitted detector.
        features: `(N, F)`.
        label: `(N,)`.
        groups: subject of every row, `(N,)`.
        folds: at most the number of groups.
        seed: of the folds.
        learned: rows that may be fitted to, `(N,)`; all when None.

    Raises:
        DataError: too few groups for the folds, or a training fold with one class only.
    """
    score = np.full(len(label), np.nan)
    predicted = np.full(len(label), -1, dtype=np.int64)
    for train, held_out in grouped_folds(label, groups, folds=folds, seed=seed):
        rows = train if learned is None else train[learned[train]]
        detector = make().fit(features[rows], label[rows], groups[rows])
        score[held_out] = detector.decision_function(features[held_out])
        predicted[held_out] = detector.predict(features[held_out])
    return score, predicted


def grouped_folds(label: Labels, groups: Groups, *, folds: int, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(training rows, held-out rows) of each fold; a group is never split, classes are balanced as far as groups allow.

    Raises:
        DataError: see `out_of_fold`.
    """
    found = len(np.unique(groups))
    if found < folds:
        raise DataError(f"scoring.folds: {folds} folds need at least {folds} training subjects, found {found}")
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    result = list(splitter.split(np.zeros((len(label), 1)), label, groups))
    for i, (train, held_out) in enumerate(result):
        for name, rows in (("training", train), ("held-out", held_out)):
            if len(np.unique(label[rows])) < 2:
                raise DataError(
                    f"fold {i + 1} of {folds}: the {name} rows hold one class only; "
                    "use fewer scoring.folds, or project more images of each subject"
                )
    return result
