"""Infarcts: dark wedges in T1 brains, their base at the surface, as the territory of a closed artery is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.anomalies.drawing import Canvas, Painted, draw_each, need_brains
from normscape.datasets.anomalies.tissue import CSF_SD, intensity_sd, painted_sd
from normscape.datasets.batches import ImageBatch
from normscape.datasets.shapes import WavyEdge, around, offsets, place_in

HALF_ANGLE_DEGREES = (20.0, 40.0)
"""Between a wedge's axis and its side."""
WAVINESS_MM, WAVE_FREQUENCY = 1.5, 5.0
"""Standard deviation of the edge's distance from a plain wedge's, and its raggedness, twice that of a blot."""
SOFT_MM = 1.5
"""Width of the ramp at the edge."""
OUTWARD_WEIGHT = 3.0
"""How much more the way to the surface counts than a random direction."""


@dataclass(frozen=True)
class Infarct:
    """A wedge that widens towards the surface, between slightly dark (some days old) and nearly fluid (months old)."""

    length_min_mm: float = 12.0
    """Least length, from the tip to the base."""
    length_max_mm: float = 28.0
    """Greatest length."""
    NUMBER: ClassVar[int] = 12

    def __post_init__(self) -> None:
        if not 0 < self.length_min_mm <= self.length_max_mm:
            raise ValueError(f"length_min_mm {self.length_min_mm} and length_max_mm {self.length_max_mm}: 0 < least <= greatest")

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        need_brains(batch.images, scene, "infarct")
        return draw_each(batch, self._paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)

    def _paint(self, canvas: Canvas, random: np.random.Generator) -> Painted:
        length = random.uniform(self.length_min_mm, self.length_max_mm)
        half_angle = np.deg2rad(random.uniform(*HALF_ANGLE_DEGREES))
        strength, target_sd = random.uniform(0.4, 0.95), random.uniform(CSF_SD, CSF_SD + 0.5)
        edge = WavyEdge.draw(random, len(canvas.shape), WAVE_FREQUENCY)
        middle = place_in(canvas.brain, random)
        axis = random.normal(size=len(canvas.shape))
        axis = axis / np.linalg.norm(axis) + OUTWARD_WEIGHT * _outward(canvas.brain, middle)
        axis /= np.linalg.norm(axis)

        half = length / 2 / canvas.spacing
        reach = half / np.cos(half_angle) + half * 2 * np.tan(half_angle) + (4 * WAVINESS_MM + SOFT_MM) / canvas.spacing
        box = around(middle, reach, canvas.shape)
        from_middle = offsets(canvas.shape, middle, box)
        from_tip = (from_middle + half * axis) * canvas.spacing
        along = from_tip @ axis
        across = np.linalg.norm(from_tip - along[..., None] * axis, axis=-1)
        # Distance from the wedge's side, and from its base: the greater one counts, negative inside.
        beyond = np.maximum(across * np.cos(half_angle) - along * np.sin(half_angle), along - length)
        direction = from_middle / np.maximum(np.linalg.norm(from_middle, axis=-1, keepdims=True), 1e-9)
        cover = (0.5 - (beyond - WAVINESS_MM * edge.height(direction)) / SOFT_MM).clip(0, 1)

        here = intensity_sd(canvas)[box]
        cover = np.where(here > target_sd, cover, 0).astype(np.float32)  # fluid stays what it is
        mask = np.zeros(canvas.shape, np.float32)
        mask[box] = cover
        return painted_sd(canvas, here + cover * strength * (target_sd - here), box), mask


def _outward(brain: NDArray[np.bool_], place: NDArray[np.float64]) -> NDArray[np.float64]:
    """The unit vector from a place to the nearest one outside the brain; 0 where none is known."""
    if brain.all():
        return np.zeros(brain.ndim)
    nearest = ndimage.distance_transform_edt(brain, return_distances=False, return_indices=True)
    way = nearest[(slice(None), *np.floor(place).astype(int))] + 0.5 - place
    return way / max(float(np.linalg.norm(way)), 1e-9)
