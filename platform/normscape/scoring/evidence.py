"""Evidence brought together without labels: how rare high values are among normal images, added up."""

from __future__ import annotations

from typing import Self

import numpy as np

from normscape.scoring.detectors import Array

TAIL = 0.05
"""Share of the normal rows beyond which a tail is exponential."""


class EvidenceDetector:
    """How rare high values are among normal rows, summed over the features; values beyond all normal ones still differ.

    For column j, p_j(x) is the share of normal rows with a value of at least x, and beyond the 95 % quantile q_j
    p_j(x) = 0.05 exp(-(x - q_j) / b_j), with b_j the mean excess over q_j there: the maximum-likelihood exponential tail. The
    score is sum_j -log p_j, as of `TailDetector`, whose p_j never falls below that of the highest normal row.
    """

    sorted_: Array  # (n, F), each column of the normal rows in ascending order
    start_: Array  # (F,), q_j
    mean_excess_: Array  # (F,), b_j

    def fit(self, features: Array) -> Self:
        """Learn from normal rows `(n, F)`.

        Raises:
            ValueError: there is no row.
        """
        if not len(features):
            raise ValueError("no normal row to fit to")
        self.sorted_ = np.sort(features, axis=0)
        self.start_ = np.quantile(features, 1 - TAIL, axis=0)
        over = (features - self.start_).clip(min=0)
        beyond = (over > 0).sum(0)
        # at least a little: where many rows share the highest value, nothing lies beyond it
        self.mean_excess_ = np.maximum(over.sum(0) / np.maximum(beyond, 1), 1e-3 * features.std(0) + 1e-9)
        return self

    def evidence(self, features: Array) -> Array:
        """-log p_j of every value, `(N, F)`."""
        n, width = self.sorted_.shape
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"expected features (N, {width}), found {features.shape}")
        at_least = np.stack([n - np.searchsorted(s, x, side="left") for s, x in zip(self.sorted_.T, features.T, strict=True)], 1)
        inside = -np.log(((1.0 + at_least) / (n + 1.0)).clip(min=TAIL))
        beyond = -np.log(TAIL) + (features - self.start_) / self.mean_excess_
        return np.where(features > self.start_, beyond, inside)

    def decision_function(self, features: Array) -> Array:
        """Scores `(N,)`, at least 0."""
        score: Array = self.evidence(features).sum(1)
        return score
