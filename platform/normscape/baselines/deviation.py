"""Local standard deviation: how flat the flattest neighbourhood is.

A yardstick for a shortcut: a synthetic anomaly of one constant intensity is flatter than any tissue, and a detector may find it
by that alone. Where this detector is good, the anomalies are too simple.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.baselines import Scores, Training
from normscape.baselines.places import training_batches
from normscape.baselines.residuals import as_scores, neighbourhood_side, positive_width
from normscape.datasets.batches import ImageBatch
from normscape.datasets.samples import to_uint8
from normscape.losses.masked import INSIDE, QUIET, local_deviation, worst

SCALE = 0.75
"""Neighbourhoods are smaller than those of other detectors: one that reaches over an anomaly's edge is not flat."""
BACKGROUND_LEVELS = 4
"""Levels of 255 by which a pixel of the background may differ from its colour."""


class DeviationDetector:
    """Largest flatness 1 / (1 + s / 0.15), s the standard deviation within a neighbourhood: in (0, 1], 1 for constant ones.

    Pictures without masks have a background that is flat by nature: pixels of the most frequent level of every channel do not
    count.

    Args:
        width: of a neighbourhood in mm, or in pixels where there is no such scale; None: three
            quarters of what other detectors take, 6 mm.

    Attributes:
        background_: most frequent intensity of each channel `(C,)`; None where images have masks.
        side_: of a neighbourhood, in pixels.
    """

    supervision: Literal["none", "synthetic"] = "none"
    background_: Tensor | None
    side_: int

    def __init__(self, *, width: float | None = None) -> None:
        self.width = positive_width(width)

    def fit(self, training: Training) -> Self:
        """Find the background of pictures; there is nothing else to learn."""
        counts = torch.zeros(training.healthy.shape[0], 256, dtype=torch.int64)
        self.background_ = None
        self.device_ = training.device
        self.side_ = neighbourhood_side(self.width, training.scene, training.healthy.shape[-1], scale=SCALE)
        for batch in training_batches(training, "deviation"):
            if batch.masks is not None:
                training.progress(1, 1)
                return self
            levels = to_uint8(batch.images).long().transpose(0, 1).flatten(1)
            counts.scatter_add_(1, levels, torch.ones_like(levels))
        self.background_ = counts.argmax(1).float() / 127.5 - 1
        return self

    def decision_function(self, batch: ImageBatch) -> Scores:
        """Flatness of the flattest neighbourhood of which more than half counts, `(B,)`."""
        flatness, share, _ = self._rate(batch)
        return as_scores(worst(flatness.flatten(1), share.flatten(1)))

    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """Flatness of the flattest neighbourhood that each place lies in and of which more than half counts, `(B, 1, *S)`; 0 in
        the background."""
        flatness, share, counts = self._rate(batch)
        largest, reach = (F.max_pool2d if flatness.ndim == 4 else F.max_pool3d), self.side_ // 2
        found: Tensor = largest(flatness * (share > INSIDE), 2 * reach + 1, stride=1, padding=reach)
        return (found * counts).cpu()

    def _rate(self, batch: ImageBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Flatness, share of the neighbourhood that counts, and what counts, `(B, 1, *S)` each."""
        images = batch.images.to(self.device_)
        if self.background_ is not None:
            wide = self.background_.to(images).view(1, -1, *(1,) * (images.ndim - 2))
            counts = (images - wide).abs().amax(1, keepdim=True) > BACKGROUND_LEVELS / 127.5
        elif batch.masks is not None:
            counts = batch.masks.to(images.device)
        else:
            counts = torch.ones_like(images[:, :1], dtype=torch.bool)
        deviation, share = local_deviation(images, self.side_, counts)
        return 1 / (1 + deviation / QUIET), share, counts
