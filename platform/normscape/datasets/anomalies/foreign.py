"""Foreign patches: a region of another subject's image at the same place, blended in with a smooth edge.

Foreign-patch interpolation (Tan et al. 2020, "Detecting Outliers with Foreign Patch Interpolation", arXiv 2011.04197), with a
round and wavy region in place of a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.anomalies.drawing import Canvas, Painted, draw_each
from normscape.datasets.batches import ImageBatch
from normscape.datasets.blots import BlotSpec, BrainBlotSpec, draw_shape
from normscape.errors import DataError

RADIUS_MM, SOFTNESS_MM = (5.0, 12.0), 3.0
"""Least and greatest radius in brains, and the width of the edge's ramp."""
RADIUS_FRACTION, SOFTNESS_FRACTION = (0.1, 0.25), 0.06
"""The same in pictures, as shares of the side."""


@dataclass(frozen=True)
class Foreign:
    """A blended region of the donor; where the donor has no brain there is nothing to blend."""

    weight_min: float = 0.4
    """Least share of the donor in the mix."""
    weight_max: float = 1.0
    """Greatest share of the donor in the mix."""
    NUMBER: ClassVar[int] = 30

    def __post_init__(self) -> None:
        if not 0 < self.weight_min <= self.weight_max <= 1:
            raise ValueError(f"weight_min {self.weight_min} and weight_max {self.weight_max}: 0 < least <= greatest <= 1")

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        if donors is None:
            raise DataError("anomaly family foreign needs donors: a normal image of another subject for each image")
        low, high = RADIUS_FRACTION
        spec: BlotSpec | BrainBlotSpec = BlotSpec(low, high, softness_fraction=SOFTNESS_FRACTION)
        if scene.spacing_mm is not None:
            spec = BrainBlotSpec(scene.spacing_mm, *RADIUS_MM, softness_mm=SOFTNESS_MM)

        def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
            assert canvas.donor is not None
            assert canvas.donor_brain is not None
            blot = draw_shape(random, spec, canvas.shape, len(canvas.image), canvas.brain)
            weight = random.uniform(self.weight_min, self.weight_max)
            cover = np.where(canvas.donor_brain, blot.cover, 0).astype(np.float32)
            return canvas.image + np.float32(weight) * cover * (canvas.donor - canvas.image), cover

        return draw_each(batch, paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene, donors=donors)
