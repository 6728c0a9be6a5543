"""Atrophy out of proportion to the age: in one region of a T1 brain tissue shrinks and the fluid beside it widens.

Fluid is what is dark in T1, and what surrounds the brain. In a ball around a place near fluid, the fluid's border moves into the
tissue, most at the border and less and less up to some millimetres away. Places at the fluid's middle stay, so that narrow clefts
widen as ventricles do. Nothing moves outside the ball; an image without fluid, and without an outside, has no atrophy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.anomalies.deformation import seen
from normscape.datasets.anomalies.drawing import Canvas, Painted, draw_each, need_brains
from normscape.datasets.anomalies.tissue import CSF_SD, distance_to, fluid_and_white, intensity_sd, painted_sd
from normscape.datasets.batches import ImageBatch
from normscape.datasets.shapes import around, offsets, place_in

NEAR_MM = 4.0
"""The ball's middle lies at most so far from fluid."""
REACH_MM = 8.0
"""Tissue so far from fluid does not move."""
STEPS = 6
"""Steps in which a place is followed towards the fluid."""
LEAST_SLOPE = 0.25
"""Where the distance from fluid changes less than this from voxel to voxel, places move less: there is no clear way down."""


@dataclass(frozen=True)
class Atrophy:
    """Widened fluid in a ball."""

    radius_min_mm: float = 12.0
    """Least radius of the ball."""
    radius_max_mm: float = 24.0
    """Greatest radius of the ball."""
    widening_max_mm: float = 4.0
    """How far a border moves at most; at least half of that in the ball's middle."""
    NUMBER: ClassVar[int] = 14

    def __post_init__(self) -> None:
        if not 0 < self.radius_min_mm <= self.radius_max_mm or self.widening_max_mm <= 0:
            raise ValueError(
                f"radius_min_mm {self.radius_min_mm}, radius_max_mm {self.radius_max_mm}, "
                f"widening_max_mm {self.widening_max_mm}: all above 0, least <= greatest"
            )

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        need_brains(batch.images, scene, "atrophy")
        return draw_each(batch, self._paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)

    def _paint(self, canvas: Canvas, random: np.random.Generator) -> Painted | None:
        fluid = fluid_and_white(canvas)[0] | ~canvas.brain
        tissue = ~fluid & (distance_to(fluid) * canvas.spacing <= NEAR_MM)
        if not tissue.any():
            return None
        middle = place_in(tissue, random)
        radius = random.uniform(self.radius_min_mm, self.radius_max_mm) / canvas.spacing
        widening = random.uniform(0.5, 1.0) * self.widening_max_mm / canvas.spacing
        box = around(middle, radius, canvas.shape)
        share = np.linalg.norm(offsets(canvas.shape, middle, box), axis=-1) / radius
        window = (1 - share**2).clip(0) ** 2

        # Outside of the brain lies fluid, too: where the brain shrinks away from its mask, that is what shows.
        before = intensity_sd(canvas)
        filled = np.where(canvas.brain, before, np.float32(CSF_SD))[box]
        after = _towards_fluid(filled, fluid[box], widening * window, REACH_MM / canvas.spacing)
        change = after - before[box]
        cover = seen(change, canvas.brain[box], canvas.spacing)
        if not (cover > 0).any():
            return None
        mask = np.zeros(canvas.shape, np.float32)
        mask[box] = cover
        return painted_sd(canvas, before[box] + cover * change, box), mask


def _towards_fluid(
    values: NDArray[np.floating], fluid: NDArray[np.bool_], way: NDArray[np.floating], reach: float
) -> NDArray[np.floating]:
    """What lies at most `way` voxels nearer to fluid than each place: (*S).

    A place is followed in small steps down the distance from fluid, so that it comes to rest in the middle of the fluid and never
    leaves it on the other side.

    Args:
        values: (*S).
        fluid: (*S).
        way: (*S), in voxels; less for places farther from fluid, none beyond `reach`.
        reach: in voxels.
    """
    distance = ndimage.gaussian_filter(distance_to(fluid) - distance_to(~fluid), 1.0)  # negative in fluid
    slope = [np.gradient(distance, axis=axis) for axis in range(fluid.ndim)]
    step = way * (1 - (distance / reach).clip(0, 1) ** 2) ** 2 / STEPS
    moving = step > 0
    place, step = np.argwhere(moving).T.astype(np.float64), step[moving]
    for _ in range(STEPS):
        direction = np.stack([ndimage.map_coordinates(part, place, order=1, mode="nearest") for part in slope])
        length = np.maximum(np.linalg.norm(direction, axis=0), LEAST_SLOPE)
        place -= step * direction / length
    result = values.astype(np.float32)
    result[moving] = ndimage.map_coordinates(values, place, order=1, mode="nearest")
    return result
