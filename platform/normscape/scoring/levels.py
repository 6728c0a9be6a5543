"""Bringing what a forest learns from to the level of what it will judge.

A generator rebuilds the subjects that it was trained on better than others: their residuals are smaller, and so is the
difference that an anomaly makes to them. A forest's thresholds, learned there, lie below the values of unseen normal images, so
that it takes all of those for abnormal alike. Normal images of subjects that no network has seen tell what to expect.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normscape.errors import DataError
from normscape.scoring.features import CALIBRATION, Projections, evidence_columns


def levelled_features(table: Projections, names: Sequence[str]) -> np.ndarray:
    """Features `(N, F)` in which the training rows are moved to the level of unseen normal images; all other rows as they are.

    For every length and residual, a training value x becomes m_c + (x - m_t) s_c / s_t, where m and s are the mean and the
    standard deviation of the normal training rows (t) and of the normal calibration rows (c); of the logarithms, where all
    values of the column are positive. Conditions stay as they are. Labels of calibration rows tell only which ones are normal.

    Args:
        table: with calibration rows.
        names: columns of the features.

    Raises:
        DataError: there are no calibration rows, or a column is missing or not finite.
    """
    features = table.features(names)
    train, known = table.split == "train", (table.split == CALIBRATION) & (table.label == 0)
    if not known.any():
        raise DataError(f"{table.path}: scoring.level is calibration, and there are no calibration rows")
    reference = train & (table.label == 0)
    evidence = set(evidence_columns(names, "flat"))
    for j, name in enumerate(names):
        if name not in evidence:
            continue
        column = features[:, j]
        positive = bool((column > 0).all())
        values = np.log(column) if positive else column
        spread = values[reference].std()
        if spread > 0:
            moved = values[known].mean() + (values[train] - values[reference].mean()) * (values[known].std() / spread)
            features[train, j] = np.exp(moved) if positive else moved
    return features
