"""The forest on the projection and the network on the image, heard together.

They fail differently: the forest knows dozens of residuals and needs few images, the network sees shapes and textures that nobody
put into a number. Both say how likely an anomaly is where half of the images have one, so their log odds can be averaged: the
logarithmic opinion pool (Genest and Zidek 1986), which has nothing to be fitted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import numpy as np
from scipy.special import expit, logit

from normscape.errors import DataError
from normscape.scoring.detectors import Array, Groups, Labels
from normscape.scoring.forest import ForestDetector
from normscape.scoring.thresholds import best_accuracy_threshold


def mean_log_odds(probability: Array, log_odds: Array, trees: int) -> Array:
    """Log odds (N,) of a pool of two.

    Args:
        probability: of anomalous, by a forest, (N,). Where all its trees agree, the odds are taken for those of half a tree's
            doubt: they must not be infinite.
        log_odds: of anomalous, by a network, (N,).
        trees: of the forest.
    """
    least = 0.5 / trees
    return (logit(probability.clip(least, 1 - least)) + log_odds) / 2


class PooledForest:
    """The probability of the mean log odds of a forest and of a network, in [0, 1].

    Args:
        forest: reads all features but the last one, which is the network's log odds.
    """

    def __init__(self, forest: ForestDetector) -> None:
        self.forest = forest
        self.threshold_ = 0.5

    def fit(self, features: Array, label: Labels, groups: Groups) -> Self:
        """Fit the forest to features (N, F + 1); there is nothing else to be fitted."""
        self.forest.fit(features[:, :-1], label, groups)
        return self

    def calibrate(self, features: Array, label: Labels) -> Self:
        """The threshold of the best accuracy on these rows."""
        self.threshold_ = best_accuracy_threshold(label, self.decision_function(features))
        return self

    def decision_function(self, features: Array) -> Array:
        """Probability of anomalous, `(N,)`."""
        return self.pooled(self.forest.decision_function(features[:, :-1]), features[:, -1])

    def pooled(self, probability: Array, log_odds: Array) -> Array:
        """The same from what both said, `(N,)` each."""
        return expit(mean_log_odds(probability, log_odds, len(self.forest.forest_.estimators_)))

    def predict(self, features: Array) -> Labels:
        """1 where the score exceeds the threshold."""
        return (self.decision_function(features) > self.threshold_).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the threshold as JSON; the forest has a file of its own."""
        path.write_text(json.dumps({"detector": "pooled", "threshold": self.threshold_}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, forest: ForestDetector) -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: the file is not such a JSON file.
        """
        detector = cls(forest)
        try:
            detector.threshold_ = float(json.loads(path.read_text(encoding="utf-8"))["threshold"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: expected the threshold of a detector as JSON, found something else ({error})") from error
        return detector
