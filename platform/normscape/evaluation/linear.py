"""What a linear conditional generator cannot rebuild: the residual of principal components, as evidence beside the projection's.

The components (`normscape.baselines.pca`) rebuild an image's z-scores under its conditions. They know less of what is normal than
the generator does, and can imitate less of what is not: what the one cannot rebuild the other sometimes can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from normscape.baselines import Training
from normscape.baselines.pca import PcaDetector
from normscape.datasets.batches import HealthyImages, ImageBatch
from normscape.evaluation.splits import of_subjects
from normscape.losses.masked import neighbourhoods, weighted_mean, worst
from normscape.scoring.conditions import Array

LINEAR_PREFIX = "linear/"
FRACTIONS = (8, 5, 4)
"""Neighbourhoods have these fractions of an image's side."""


class LinearResidual:
    """Residual of the principal components of normal training images, in standard deviations of the normative model.

    Args:
        components: how many; never more than images or pixels.
        conditions: of the normative model, see `normscape.baselines.normative`.
        position: likewise.
    """

    def __init__(self, components: int, *, conditions: str | Sequence[str] = "all", position: bool = True) -> None:
        self.pca = PcaDetector(components=components, conditions=conditions, position="known" if position else "none")

    def fit(self, training: Training, subjects: Sequence[str] | None = None) -> Self:
        """Learn from normal images of some training subjects; of all when None."""
        if subjects is not None:
            healthy = HealthyImages(of_subjects(training.healthy.samples, subjects), training.config.value_attributes)
            training = replace(training, healthy=healthy)
        self.pca.fit(training)
        return self

    def columns(self, batch: ImageBatch) -> dict[str, Array]:
        """Residuals of images, (B,) each.

        `linear/mean` is the mean absolute residual, `linear/<fraction>` the length of its mean in the worst neighbourhood of that
        fraction of the side.
        """
        residual = self.pca.residual(batch)
        mask = None if batch.masks is None else batch.masks.to(residual.device)
        inside = None if mask is None else mask.flatten(1)
        found = {"mean": weighted_mean(residual.abs().mean(1).flatten(1), inside)}
        for part in FRACTIONS:
            found[str(part)] = worst(*neighbourhoods(residual, max(2, residual.shape[-1] // part), mask))
        return {f"{LINEAR_PREFIX}{name}": value.double().cpu().numpy() for name, value in found.items()}
