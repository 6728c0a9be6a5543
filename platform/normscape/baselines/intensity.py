"""Plain intensity: how far the worst neighbourhood is from what images usually show, whatever place, age or angle.

A yardstick: an anomaly that this finds is brighter or darker than anything else and tells nothing about a method.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.places import training_batches
from normscape.baselines.residuals import as_scores, neighbourhood_side, positive_width, rated_neighbourhoods
from normscape.datasets.batches import ImageBatch


class IntensityDetector:
    """Largest |z| after averaging over neighbourhoods; z is taken over all places of all training images.

    Args:
        width: of a neighbourhood in mm, or in pixels where there is no such scale; None: 8 mm, or an eighth of the side.

    Attributes:
        mean_: of each channel, `(C,)`.
        deviation_: likewise.
        side_: of a neighbourhood, in pixels.
    """

    supervision: Literal["none", "synthetic"] = "none"
    mean_: Tensor
    deviation_: Tensor
    side_: int

    def __init__(self, *, width: float | None = None) -> None:
        self.width = positive_width(width)

    def fit(self, training: Training) -> Self:
        """Mean and standard deviation of the training images under their masks."""
        channels = training.healthy.shape[0]
        sums = torch.zeros(3, channels, dtype=torch.float64)
        for batch in training_batches(training, "intensity"):
            inside = torch.ones_like(batch.images[:, :1]) if batch.masks is None else batch.masks
            axes = [axis for axis in range(batch.images.ndim) if axis != 1]
            value, weight = batch.images.double(), inside.double().expand_as(batch.images)
            sums += torch.stack([(weight * power).sum(axes) for power in (torch.ones_like(value), value, value.square())])
        count, first, second = sums
        mean = first / count.clamp(min=1)
        variance = second / count.clamp(min=1) - mean.square()
        self.device_ = training.device
        self.mean_, self.deviation_ = mean.float(), variance.clamp(min=1e-12).sqrt().float()
        self.side_ = neighbourhood_side(self.width, training.scene, training.healthy.shape[-1])
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """The largest length of a neighbourhood's mean z, `(B,)`."""
        return as_scores(self._rate(batch)[0])

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """The length of the mean z around each place, `(B, 1, *S)`."""
        return self._rate(batch)[1].cpu()

    def _rate(self, batch: ImageBatch) -> tuple[Tensor, Tensor]:
        images, wide = batch.images.to(self.device_), (1, -1, *(1,) * (batch.images.ndim - 2))
        z = (images - self.mean_.to(images).view(wide)) / self.deviation_.to(images).view(wide)
        return rated_neighbourhoods(z, self.side_, None if batch.masks is None else batch.masks.to(images.device))
