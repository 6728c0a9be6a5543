"""Distance of pooled frozen features to their nearest normal neighbours (DN2, Bergman et al. 2020).

Every image becomes one vector: the mean of each feature channel over the image, or over the brain in it, divided by the channel's
standard deviation over normal images so that layers count alike. The score is the mean distance to the k nearest. Beyond the
paper, neighbours have to come from nearby places of the brain, where positions are known, and may have to come from like ages or
angles (`match`). It tells whether, not where.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.frozen import Kind, check_features, load_features, stages_of
from normscape.baselines.nearest import Bank, check_match, matched_conditions
from normscape.baselines.places import training_batches
from normscape.baselines.residuals import as_scores
from normscape.datasets.batches import ImageBatch
from normscape.losses.masked import resampled

LEAST_SHARE = 0.01
"""Least standard deviation of a channel, as a share of the mean over all: some are always 0 on normal images."""
_TINY = 1e-6


class NeighboursDetector:
    """Score: the mean distance to the nearest normal images.

    Args:
        features: `auxiliary`, the experiment's identity network, or `efficientnet_lite0`.
        layers: maps that are looked at, 0 is the finest.
        neighbours: how many; the paper's 2.
        match: condition to the largest distance, in its unit, at which normal images count as alike; None: the position within
            20 mm, where it is known. `{}` compares with all.
        shuffled: training images get the conditions of others.

    Attributes:
        bank_: the training images' features, standardised.
        mean_: of the features `(D,)`.
        deviation_: likewise.
    """

    supervision: Literal["none", "synthetic"] = "none"
    bank_: Bank
    mean_: Tensor
    deviation_: Tensor

    def __init__(
        self,
        *,
        features: Kind = "auxiliary",
        layers: Sequence[int] = (2, 3),
        neighbours: int = 2,
        match: Mapping[str, float] | None = None,
        shuffled: bool = False,
    ) -> None:
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, found {neighbours}")
        check_match(match)
        self.stages = stages_of(features)
        self.features, self.layers, self.neighbours = features, check_features(features, layers), neighbours
        self.match, self.shuffled = match, shuffled

    def fit(self, training: Training) -> Self:
        """Keep the training images' features.

        Raises:
            ConfigError: `match` names no value attribute.
            DataError: features that are asked for are not there.
        """
        self.network_ = load_features(self.features, self.layers, training)
        radius = matched_conditions(self.match, training)
        values: list[Tensor] = []
        known: dict[str, list[Tensor]] = {name: [] for name in radius}
        for batch in training_batches(training, "neighbours", shuffled=self.shuffled):
            values.append(self._pooled(batch))
            for name, parts in known.items():
                parts.append(batch.conditions[name].to(training.device))
        found = torch.cat(values)
        deviation = found.std(0, correction=0)
        self.mean_, self.deviation_ = found.mean(0), deviation.clamp(min=max(LEAST_SHARE * float(deviation.mean()), _TINY))
        features = (found - self.mean_) / self.deviation_
        self.bank_ = Bank(features, {name: torch.cat(parts) for name, parts in known.items()}, radius)
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Scores `(B,)`."""
        queries = (self._pooled(batch) - self.mean_) / self.deviation_
        conditions = {name: batch.conditions[name].to(queries.device) for name in self.bank_.radius}
        distance, _ = self.bank_.nearest(queries, conditions, min(self.neighbours, len(self.bank_)))
        return as_scores(distance.mean(1))

    def anomaly_map(self, batch: ImageBatch) -> Tensor | None:
        """One vector an image does not tell where."""
        return None

    def _pooled(self, batch: ImageBatch) -> Tensor:
        """Means of all channels of all layers, `(B, D)`; over the brain where there is a mask."""
        pooled = []
        for found in self.network_.maps(batch):
            share = None if batch.masks is None else resampled(batch.masks.to(found.device), found.shape[2:])
            flat = found.flatten(2)
            if share is None:
                pooled.append(flat.mean(2))
            else:
                pooled.append((flat * share[:, None]).sum(2) / share.sum(1, keepdim=True).clamp(min=_TINY))
        return torch.cat(pooled, dim=1)
