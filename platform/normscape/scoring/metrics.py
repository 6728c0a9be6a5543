"""Metrics of a score, and 95 % intervals by resampling subjects.

Every metric takes weights of a whole block of resamples at once, `(R, N)`, so that a thousand resamples cost a few cumulative
sums. A resample that draws a subject twice is the same as counting that subject's rows twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_curve as sklearn_roc_curve

Array = NDArray[np.float64]
Metric = Callable[[NDArray[np.int64], Array, Array], Array]
"""(label (N,), score (N,), weight (R, N)) -> (R,), NaN where a resample leaves the metric undefined."""

BLOCK_ELEMENTS = 500_000
"""Elements of the largest temporary array, resamples times rows."""


@dataclass(frozen=True)
class Interval:
    """A metric and its 95 % interval.

    `low` and `high` are NaN where they cannot be had: fewer than two subjects, or no resample with both classes.
    """

    value: float
    low: float
    high: float
    resamples: int
    """Resamples that count."""
    skipped: int
    """Resamples left out because the metric is undefined on them (one class only)."""


def accuracy(label: NDArray[np.int64], predicted: Array, weight: Array) -> Array:
    """Share of rows whose prediction, 0 or 1, is the label."""
    return (weight @ (predicted == label).astype(np.float64)) / weight.sum(axis=1)


def prevalence(label: NDArray[np.int64], score: Array, weight: Array) -> Array:
    """Share of anomalous rows: the AUPRC of guessing."""
    return (weight @ label.astype(np.float64)) / weight.sum(axis=1)


def auroc(label: NDArray[np.int64], score: Array, weight: Array) -> Array:
    """Area under the ROC curve: the chance that an anomalous row scores higher than a normal one, ties counting half."""
    order, ends = _order(score)
    positive = np.diff(_at_ends(weight[:, order] * label[order], ends), axis=1, prepend=0.0)  # (R, levels), from high to low
    negative_to = _at_ends(weight[:, order] * (1 - label[order]), ends)
    negative = np.diff(negative_to, axis=1, prepend=0.0)
    total = negative_to[:, -1:]
    concordant = (positive * (total - negative_to + negative / 2)).sum(axis=1)
    return _divide(concordant, positive.sum(axis=1) * total[:, 0])


def auprc(label: NDArray[np.int64], score: Array, weight: Array) -> Array:
    """Average precision: precision at each level of the score, weighted by the recall gained there (as scikit-learn has it)."""
    order, ends = _order(score)
    positive_to = _at_ends(weight[:, order] * label[order], ends)
    all_to = _at_ends(weight[:, order], ends)
    gained = np.diff(positive_to, axis=1, prepend=0.0)
    precision = np.divide(positive_to, all_to, out=np.zeros_like(positive_to), where=all_to > 0)
    defined = positive_to[:, -1] < all_to[:, -1]  # one class only: undefined, as for the AUROC
    return np.where(defined, _divide((gained * precision).sum(axis=1), positive_to[:, -1]), np.nan)


def roc_curve(label: ArrayLike, score: ArrayLike) -> tuple[Array, Array]:
    """False and true positive rates, `(K,)` each, from (0, 0) to (1, 1)."""
    fpr, tpr, _ = sklearn_roc_curve(np.asarray(label), np.asarray(score))
    return fpr, tpr


def bootstrap_by_subject(
    metric: Metric, label: ArrayLike, score: ArrayLike, subject: Sequence[str] | NDArray, *, n: int, seed: int
) -> Interval:
    """A metric with its 95 % percentile interval over resamples of subjects with replacement.

    The same `n`, `seed` and subjects give the same resamples whatever the metric and the score, so detectors are compared on
    the same draws.

    Args:
        metric: one of this module's metrics.
        label: 0 or 1, `(N,)`.
        score: higher is more abnormal (or predictions, for `accuracy`), `(N,)`.
        subject: whose row it is, `(N,)`.
        n: resamples.
        seed: of the resampling.
    """
    y = np.asarray(label, dtype=np.int64)
    s = np.asarray(score, dtype=np.float64)
    subjects, owner = np.unique(np.asarray(subject), return_inverse=True)
    value = float(metric(y, s, np.ones((1, len(y))))[0])
    if len(subjects) < 2:
        return Interval(value, math.nan, math.nan, 0, 0)
    counts = resample_counts(len(subjects), n, seed)
    block = max(1, BLOCK_ELEMENTS // len(y))
    values = np.concatenate([metric(y, s, counts[i : i + block][:, owner]) for i in range(0, n, block)])
    valid = values[np.isfinite(values)]
    if not len(valid):
        return Interval(value, math.nan, math.nan, 0, n)
    low, high = np.percentile(valid, [2.5, 97.5])
    return Interval(value, float(low), float(high), len(valid), n - len(valid))


def resample_counts(subjects: int, n: int, seed: int) -> Array:
    """How often each subject is drawn in each of `n` resamples, `(n, subjects)`; every row sums to `subjects`."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(subjects, np.full(subjects, 1.0 / subjects), size=n).astype(np.float64)


def _order(score: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows from the highest score to the lowest, and the last position of each run of equal scores."""
    order = np.argsort(-score, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    return order, ends


def _at_ends(weight: Array, ends: NDArray[np.intp]) -> Array:
    """Cumulative weight up to the end of each level of the score, `(R, levels)`."""
    return np.cumsum(weight, axis=1)[:, ends]


def _divide(a: Array, b: Array) -> Array:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
