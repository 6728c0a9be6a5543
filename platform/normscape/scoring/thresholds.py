"""Thresholds, chosen on training data."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def best_accuracy_threshold(label: ArrayLike, score: ArrayLike) -> float:
    """The threshold t with the highest accuracy of `score > t` (thesis IV.A.3).

    Candidates are the middles between neighbouring scores, and one beyond either end. Of several equally good ones the middle
    one is taken, so that a flat optimum does not end at its rim.

    Args:
        label: 0 or 1, `(N,)`.
        score: higher is more abnormal, `(N,)`.
    """
    y = np.asarray(label, dtype=np.int64)
    s = np.asarray(score, dtype=np.float64)
    if not len(y):
        raise ValueError("a threshold needs at least one score")
    levels, level = np.unique(s, return_inverse=True)
    positives = np.bincount(level, weights=y, minlength=len(levels))
    negatives = np.bincount(level, weights=1 - y, minlength=len(levels))
    # Candidate i calls levels i, i + 1, ... anomalous: correct are the negatives below and the positives from i on.
    correct = np.concatenate([[0.0], np.cumsum(negatives)]) + positives.sum() - np.concatenate([[0.0], np.cumsum(positives)])
    candidates = np.concatenate([[levels[0] - 1.0], (levels[:-1] + levels[1:]) / 2, [levels[-1]]])
    best = np.flatnonzero(correct == correct.max())
    return float(candidates[best[len(best) // 2]])


def quantile_threshold(normal_score: ArrayLike, quantile: float) -> float:
    """The threshold that a share `quantile` of the normal training scores stays below; needs no anomaly.

    Args:
        normal_score: scores of normal training rows, `(N,)`.
        quantile: in (0, 1).
    """
    return float(np.quantile(np.asarray(normal_score, dtype=np.float64), quantile))
