"""Evidence of several kinds brought together without labels: rare high values of each kind, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from normscape.scoring.detectors import Array
from normscape.scoring.expected import LEVEL_PREFIX
from normscape.scoring.features import RESIDUAL_PREFIX

TAIL = 0.05
"""Share of the normal rows beyond which a tail is exponential."""
_KINDS = ("discriminator", "feature", "output_", "condition_", "atlas_", "conditions_", "encoded_", "flat")


def kind_of(column: str) -> str:
    """What sort of evidence a column is: columns of one kind measure nearly the same thing, several times.

    `length`, `density`, `masked`, `spread`; of residuals the networks or the yardstick they are seen through, or `pixels`.
    """
    name = column.removeprefix(LEVEL_PREFIX)
    if not name.startswith(RESIDUAL_PREFIX):
        return name.split("/")[0]
    own = name.removeprefix(RESIDUAL_PREFIX)
    return next((kind for kind in _KINDS if own.startswith(kind)), "pixels").rstrip("_")


class EvidenceDetector:
    """How rare high values are among normal rows: the mean within each kind of evidence, summed over the kinds.

    For column j, p_j(x) is the share of normal rows with a value of at least x, and beyond the 95 % quantile q_j
    p_j(x) = 0.05 exp(-(x - q_j) / b_j), with b_j the mean excess over q_j there: the maximum-likelihood exponential tail. So two
    values beyond all normal ones still differ. The score is the sum over kinds of the mean over a kind's columns of -log p_j:
    Fisher's method, as if kinds were independent, while columns of one kind, which hardly are, count as one.

    Args:
        columns: names of the features, in order; see `kind_of`.
    """

    sorted_: Array  # (n, F), each column of the normal rows in ascending order
    start_: Array  # (F,), q_j
    mean_excess_: Array  # (F,), b_j

    def __init__(self, columns: Sequence[str]) -> None:
        kinds = [kind_of(name) for name in columns]
        self.kinds = tuple(dict.fromkeys(kinds))
        counts = {kind: kinds.count(kind) for kind in self.kinds}
        self._weights: NDArray[np.float64] = np.array([1.0 / counts[kind] for kind in kinds])

    def fit(self, features: Array) -> Self:
        """Learn from normal rows `(n, F)`.

        Raises:
            ValueError: there is no row, or another number of columns.
        """
        if not len(features) or features.shape[1] != len(self._weights):
            raise ValueError(f"expected normal rows (n, {len(self._weights)}), found {features.shape}")
        self.sorted_ = np.sort(features, axis=0)
        self.start_ = np.quantile(features, 1 - TAIL, axis=0)
        over = (features - self.start_).clip(min=0)
        beyond = (over > 0).sum(0)
        # at least a little: where many rows share the highest value, nothing lies beyond it
        self.mean_excess_ = np.maximum(over.sum(0) / np.maximum(beyond, 1), 1e-3 * features.std(0) + 1e-9)
        return self

    def evidence(self, features: Array) -> Array:
        """-log p_j of every value, `(N, F)`."""
        n = len(self.sorted_)
        at_least = np.stack([n - np.searchsorted(s, x, side="left") for s, x in zip(self.sorted_.T, features.T, strict=True)], 1)
        inside = -np.log(((1.0 + at_least) / (n + 1.0)).clip(min=TAIL))
        beyond = -np.log(TAIL) + (features - self.start_) / self.mean_excess_
        return np.where(features > self.start_, beyond, inside)

    def decision_function(self, features: Array) -> Array:
        """Scores `(N,)`, at least 0."""
        score: Array = self.evidence(features) @ self._weights
        return score
