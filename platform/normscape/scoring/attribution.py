"""Which features drove the score of one image: additive contributions along the decision paths of a forest.

On its way down a tree an image starts with the share of anomalous rows at the root, and every split that it passes changes the
share. The change is credited to the feature of the split; what is left at the leaf is the tree's score (Saabas 2014, Interpreting
random forests; Palczewska et al. 2014, Interpreting random forest classification models using a feature contribution method)::

    score = bias + sum over features of the contribution,    each averaged over the trees

The contributions are exact and cheap, but tell how this forest came to its score, not what causes an anomaly; of two columns
that say the same, either may get the credit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import RandomForestClassifier

from normscape.scoring.detectors import Array


@dataclass(frozen=True)
class Attribution:
    """Where scores come from.

    Attributes:
        bias: score of an image of which nothing is known: the mean share of anomalous rows at the roots.
        contributions: what each feature added or took, (N, F); `bias` plus their sum is the score.
    """

    bias: float
    contributions: Array

    def strongest(self, row: int, count: int) -> NDArray[np.int64]:
        """The features that moved the score of a row most, up or down, the strongest first; those that did nothing are left out."""
        moved = np.abs(self.contributions[row])
        order = np.argsort(-moved, kind="stable")[:count]
        return order[moved[order] > 0]


def forest_attribution(forest: RandomForestClassifier, features: Array) -> Attribution:
    """Contributions of the features to the probability of class 1, image by image.

    Args:
        forest: fitted to the classes 0 and 1.
        features: (N, F), as `predict_proba` takes them.

    Raises:
        ValueError: another number of features, or other classes than 0 and 1.
    """
    if features.ndim != 2 or features.shape[1] != forest.n_features_in_:
        raise ValueError(f"expected features (N, {forest.n_features_in_}), found {features.shape}")
    if forest.classes_.tolist() != [0, 1]:
        raise ValueError(f"expected a forest of the classes 0 and 1, found {forest.classes_.tolist()}")
    rows = np.ascontiguousarray(features, dtype=np.float32)  # what trees split on
    total = np.zeros(features.shape, dtype=np.float64)
    bias = 0.0
    for estimator in forest.estimators_:
        tree = estimator.tree_
        counts = tree.value[:, 0, :]
        share = counts[:, 1] / counts.sum(axis=1)  # of anomalous rows at each node
        splits = np.flatnonzero(tree.children_left >= 0)
        parents = np.concatenate([splits, splits])
        children = np.concatenate([tree.children_left[splits], tree.children_right[splits]])
        change = sparse.csr_matrix(
            (share[children] - share[parents], (children, tree.feature[parents])), shape=(tree.node_count, features.shape[1])
        )  # fmt: skip
        total += (tree.decision_path(rows) @ change).toarray()
        bias += float(share[0])
    return Attribution(bias / len(forest.estimators_), total / len(forest.estimators_))
