"""Lesions of the white matter in T1 brains: small dark foci, most of them near the ventricles.

So they lie in small-vessel disease and multiple sclerosis (Fazekas et al. 1987, American Journal of Roentgenology 149, 351;
Sahraian et al. 2010, Acta Neurologica Scandinavica 122, 1). Ventricles are fluid deep in the brain. Where a patch shows none, the
foci lie anywhere in its white matter; where it shows too little white matter, there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.anomalies.drawing import Canvas, Painted, draw_each, need_brains
from normscape.datasets.anomalies.tissue import GREY_SD, depth_mm, distance_to, fluid_and_white, intensity_sd, painted_sd
from normscape.datasets.batches import ImageBatch
from normscape.datasets.shapes import WavyBall, WavyEdge

FOCI = (3, 12)
"""Least and greatest number of foci where there is room."""
ROOM_ML = 1.0
"""White matter to a focus at least."""
VENTRICLE_DEPTH_MM = 14.0
"""Fluid at least so far inside the brain is a ventricle's."""
NEAR_MM = 10.0
"""So near to a ventricle most foci lie."""
ELSEWHERE_WEIGHT = 0.05
"""How much less likely a focus lies at a place that is not near a ventricle."""
LEAST_RADIUS_MM = 1.5
WAVINESS, WAVE_FREQUENCY, SOFT_MM = 0.25, 2.5, 1.0
"""Standard deviation of a focus's edge as a share of its radius, its raggedness, and the width of its ramp."""


@dataclass(frozen=True)
class WhiteMatterLesions:
    """Several small foci, from a little darker than the cortex to nearly fluid."""

    radius_max_mm: float = 4.0
    """Greatest radius of a focus; the least is 1.5 mm."""
    NUMBER: ClassVar[int] = 13

    def __post_init__(self) -> None:
        if self.radius_max_mm < LEAST_RADIUS_MM:
            raise ValueError(f"radius_max_mm {self.radius_max_mm}: at least {LEAST_RADIUS_MM}")

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        need_brains(batch.images, scene, "white_matter")
        return draw_each(batch, self._paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)

    def _paint(self, canvas: Canvas, random: np.random.Generator) -> Painted | None:
        fluid, white = fluid_and_white(canvas)
        # Away from its border, which partial volume blurs; what lies beyond an image's end is not known to be a border.
        inner = ndimage.binary_erosion(white, border_value=1)
        room = int(inner.sum() * canvas.spacing ** len(canvas.shape) / (1000 * ROOM_ML))
        most = int(random.integers(FOCI[0], FOCI[1] + 1))
        if room < 1:
            return None
        ventricles = ndimage.binary_opening(fluid & (depth_mm(canvas) >= VENTRICLE_DEPTH_MM))
        near = distance_to(ventricles) * canvas.spacing <= NEAR_MM
        before = intensity_sd(canvas)
        after, mask = before.copy(), np.zeros(canvas.shape, np.float32)
        for center in _places(inner * np.where(near, 1.0, ELSEWHERE_WEIGHT), min(most, room), random):
            radius = random.uniform(LEAST_RADIUS_MM, self.radius_max_mm) / canvas.spacing
            level, strength = random.uniform(-1.5, GREY_SD), random.uniform(0.6, 1.0)
            ball = WavyBall(center, radius, WAVINESS, WavyEdge.draw(random, len(canvas.shape), WAVE_FREQUENCY))
            box = ball.box(canvas.shape, SOFT_MM / canvas.spacing)
            beyond, _ = ball.beyond(canvas.shape, box)
            cover = np.where(before[box] > level, (0.5 - beyond * canvas.spacing / SOFT_MM).clip(0, 1), 0)
            after[box] = np.minimum(after[box], before[box] + cover * strength * (level - before[box]))
            mask[box] = np.maximum(mask[box], cover)
        return painted_sd(canvas, after, (slice(None),) * len(canvas.shape)), mask


def _places(weight: NDArray[np.floating], count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Points drawn by these weights (*S), one and the same voxel maybe more than once: (count, dims)."""
    total = np.cumsum(weight, dtype=np.float64)
    voxels = np.searchsorted(total, random.uniform(size=count) * total[-1], side="right")
    return np.stack(np.unravel_index(voxels, weight.shape), axis=1) + random.uniform(size=(count, weight.ndim))
