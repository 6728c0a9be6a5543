"""The conditional detector with two pairs of eyes: the forest on the projection, and the network on the image.

See `normscape.scoring.pooled`; the system of a run does the same with the network of its stage `network`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from scipy.special import expit
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.conditional_network import ConditionalNetwork
from normscape.datasets.batches import ImageBatch
from normscape.evaluation.conditional import ConditionalDetector, place_scores
from normscape.evaluation.usual import matrix
from normscape.scoring.pooled import mean_log_odds


class PooledDetector:
    """The mean of the log odds of `ConditionalDetector` and `ConditionalNetwork`, each fitted by itself.

    Args:
        forest: settings of `ConditionalDetector`.
        network: settings of `ConditionalNetwork`.

    Raises:
        ValueError: a setting of one of them is out of its range.
    """

    supervision: Literal["none", "synthetic"] = "synthetic"

    def __init__(self, *, forest: Mapping[str, Any] | None = None, network: Mapping[str, Any] | None = None) -> None:
        self.forest = ConditionalDetector(**(forest or {}))
        self.network = ConditionalNetwork(**(network or {}))
        self.stages, self.sections = self.forest.stages, self.forest.sections

    def fit(self, training: Training) -> Self:
        """Fit both; see there."""
        self.forest.fit(training)
        self.network.fit(training)
        return self

    @property
    def saved_seconds(self) -> float:
        """See `saved_by`."""
        return self.forest.saved_seconds

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Mean log odds (B,) that an image has an anomaly, where half of them do."""
        return self._pooled(self.forest.decision_function(batch), batch)

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """The probability of those odds, placed by the excess over what is usual, float32 (B, 1, *S); see `place_scores`.

        The network's own map is left out: it shows where something looks like an anomaly of the training, and misses what is
        merely unusual.
        """
        images, columns = self.forest.features.of(batch)
        forest = self.forest.forest_.decision_function(matrix(columns, self.forest.columns_))
        return place_scores(expit(self._pooled(forest, batch)), images)

    def _pooled(self, forest: Scores, batch: ImageBatch) -> Scores:
        """Mean log odds, from the forest's probabilities (B,) of the same images."""
        trees = len(self.forest.forest_.forest_.estimators_)
        return mean_log_odds(forest, self.network.decision_function(batch), trees)
