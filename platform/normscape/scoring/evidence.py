"""Evidence brought together without labels: how rare the rarest value is among normal images."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from normscape.errors import DataError
from normscape.scoring.detectors import Array, Groups, Labels
from normscape.scoring.thresholds import quantile_threshold

TAIL = 0.05
"""Share of the normal rows beyond which a tail is exponential."""


class EvidenceDetector:
    """How rare a high value is among normal rows, of the feature in which it is rarest.

    For column j, p_j(x) is the share of normal rows with a value of at least x, and beyond the 95 % quantile q_j
    p_j(x) = 0.05 exp(-(x - q_j) / b_j), with b_j the mean excess over q_j there: the maximum-likelihood exponential tail, without
    which all values above the highest normal one would count the same. The score is the largest -log p_j (Tippett's combination
    of p-values). An anomaly is strange in one respect, and the sum over all respects (Fisher's) buries it under the noise of the
    others: the more columns, the deeper. Only high values count as abnormal.

    Args:
        quantile: of the scores of normal rows, which is the threshold: with 0.95, 5 % false alarms are asked for there.

    Attributes:
        sorted_: each column of the normal rows in ascending order, (n, F).
        start_: q_j, (F,).
        mean_excess_: b_j, (F,).
    """

    threshold_: float
    sorted_: Array
    start_: Array
    mean_excess_: Array

    def __init__(self, *, quantile: float = 0.95) -> None:
        self.quantile = quantile

    def fit(self, features: Array, label: Labels | None = None, groups: Groups | None = None) -> Self:
        """Learn from the rows of `(N, F)` with label 0, or from all where there are no labels; the others are not looked at.

        Raises:
            ValueError: there is no such row.
        """
        normal = features if label is None else features[label == 0]
        if not len(normal):
            raise ValueError("no normal row to fit to")
        self.sorted_ = np.sort(normal, axis=0)
        self.start_ = np.quantile(normal, 1 - TAIL, axis=0)
        over = (normal - self.start_).clip(min=0)
        beyond = (over > 0).sum(0)
        # at least a little: where many rows share the highest value, nothing lies beyond it
        self.mean_excess_ = np.maximum(over.sum(0) / np.maximum(beyond, 1), 1e-3 * normal.std(0) + 1e-9)
        return self.calibrate(normal)

    def calibrate(self, features: Array, label: Labels | None = None) -> Self:
        """The threshold is the quantile of the scores of the normal ones of these rows."""
        normal = features if label is None else features[label == 0]
        self.threshold_ = quantile_threshold(self.decision_function(normal), self.quantile)
        return self

    def evidence(self, features: Array) -> Array:
        """-log p_j of every value, `(N, F)`, at least 0."""
        n, width = self.sorted_.shape
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"expected features (N, {width}), found {features.shape}")
        at_least = np.stack([n - np.searchsorted(s, x, side="left") for s, x in zip(self.sorted_.T, features.T, strict=True)], 1)
        inside = -np.log(((1.0 + at_least) / (n + 1.0)).clip(min=TAIL))
        beyond = -np.log(TAIL) + (features - self.start_) / self.mean_excess_
        return np.where(features > self.start_, beyond, inside)

    def decision_function(self, features: Array) -> Array:
        """Scores `(N,)`, at least 0."""
        score: Array = self.evidence(features).max(1)
        return score

    def predict(self, features: Array) -> Labels:
        """1 where the score exceeds the threshold."""
        return (self.decision_function(features) > self.threshold_).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write what was fitted as safetensors."""
        known = {"threshold": np.array([self.threshold_]), "quantile": np.array([self.quantile])}
        save_file({"sorted": self.sorted_, "start": self.start_, "mean_excess": self.mean_excess_} | known, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not such a file.
        """
        try:
            found = load_file(path)
            detector = cls(quantile=float(found["quantile"][0]))
            detector.sorted_, detector.start_ = found["sorted"], found["start"]
            detector.mean_excess_ = found["mean_excess"]
            detector.threshold_ = float(found["threshold"][0])
        except (OSError, KeyError, IndexError, SafetensorError) as error:
            raise DataError(f"{path}: expected the rows of a detector as safetensors, found something else ({error})") from error
        return detector
