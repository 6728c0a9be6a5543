"""Masses: tumours and haemorrhages, layers around a centre with a halo, drawn into T1 brains.

Tumours follow the usual look of gliomas and metastases in T1 without contrast agent: a dark core, a rim about as bright as the
cortex or brighter, dark oedema that spreads in white matter, and tissue around that is pushed away. Haemorrhages follow the known
course of blood in T1 (Bradley 1993, Radiology 189, 15): about as bright as the cortex at first, bright from the third day on,
from the rim inwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies import AnomalyBatch, Scene
from normscape.datasets.anomalies.deformation import moved, seen
from normscape.datasets.anomalies.drawing import Canvas, FloatArray, Painted, draw_each, need_brains
from normscape.datasets.anomalies.tissue import CSF_SD, GREY_SD, WHITE_SD, intensity_sd, painted_sd
from normscape.datasets.batches import ImageBatch
from normscape.datasets.shapes import Box, WavyBall, WavyEdge, place_in

WAVE_FREQUENCY = 2.5
"""Raggedness of edges, as in blots."""
SOFT_MM = 1.5
"""Width of the ramp between layers."""
FADE = 2.5
"""Tissue is pushed away up to so many times the push from the edge: it is pressed together to a half at most."""
ROUGH_MM = 1.5
"""Standard deviation of the Gaussian that makes the texture of a mass."""


@dataclass(frozen=True)
class _Mass:
    """A mass in millimetres and in standard deviations of the brain's intensities."""

    radius: float
    waviness: float
    """Standard deviation of the edge's distance, as a share of the radius."""
    rim: float
    """Thickness of the outer layer."""
    core_sd: float
    rim_sd: float
    halo: float
    """Width of the oedema beyond the edge."""
    halo_strength: float
    """Share of the way from white matter to the oedema's intensity."""
    push: float
    """How far tissue at the edge is pushed away."""
    roughness_sd: float
    """Standard deviation of the mass's texture."""


@dataclass(frozen=True)
class Tumour:
    """Core, rim, oedema in white matter, and mass effect."""

    radius_min_mm: float = 5.0
    """Least radius, oedema not counted."""
    radius_max_mm: float = 12.0
    """Greatest radius."""
    NUMBER: ClassVar[int] = 10

    def __post_init__(self) -> None:
        if not 0 < self.radius_min_mm <= self.radius_max_mm:
            raise ValueError(f"radius_min_mm {self.radius_min_mm} and radius_max_mm {self.radius_max_mm}: 0 < least <= greatest")

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        need_brains(batch.images, scene, "tumour")

        def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
            radius = random.uniform(self.radius_min_mm, self.radius_max_mm)
            mass = _Mass(
                radius=radius, waviness=random.uniform(0.05, 0.2), rim=random.uniform(0.15, 0.5) * radius,
                core_sd=random.uniform(CSF_SD + 0.3, -0.8), rim_sd=random.uniform(GREY_SD - 0.4, WHITE_SD + 0.4),
                halo=random.uniform(3.0, 8.0), halo_strength=random.uniform(0.5, 0.9),
                push=random.uniform(0.15, 0.4) * radius, roughness_sd=random.uniform(0.1, 0.3),
            )  # fmt: skip
            return _drawn(canvas, mass, random)

        return draw_each(batch, paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)


@dataclass(frozen=True)
class Haemorrhage:
    """A bleeding of one of three ages: fresh (like cortex), later with a bright rim, then bright altogether; a thin dark halo."""

    radius_min_mm: float = 4.0
    """Least radius."""
    radius_max_mm: float = 10.0
    """Greatest radius."""
    NUMBER: ClassVar[int] = 11

    def __post_init__(self) -> None:
        if not 0 < self.radius_min_mm <= self.radius_max_mm:
            raise ValueError(f"radius_min_mm {self.radius_min_mm} and radius_max_mm {self.radius_max_mm}: 0 < least <= greatest")

    def draw(
        self, batch: ImageBatch, *, seed: int, sample_ids: Sequence[int], scene: Scene, donors: ImageBatch | None = None
    ) -> AnomalyBatch:
        """See `AnomalyFamily`."""
        need_brains(batch.images, scene, "haemorrhage")

        def paint(canvas: Canvas, random: np.random.Generator) -> Painted:
            radius = random.uniform(self.radius_min_mm, self.radius_max_mm)
            fresh, bright = random.uniform(GREY_SD - 0.6, GREY_SD), random.uniform(WHITE_SD + 0.8, 2.7)
            core_sd, rim_sd = ((fresh, fresh), (fresh, bright), (bright, bright))[random.integers(3)]
            mass = _Mass(
                radius=radius, waviness=random.uniform(0.1, 0.25), rim=random.uniform(0.2, 0.4) * radius, core_sd=core_sd,
                rim_sd=rim_sd, halo=random.uniform(2.0, 5.0), halo_strength=random.uniform(0.4, 0.8),
                push=random.uniform(0.0, 0.15) * radius, roughness_sd=random.uniform(0.1, 0.25),
            )  # fmt: skip
            return _drawn(canvas, mass, random)

        return draw_each(batch, paint, number=self.NUMBER, seed=seed, sample_ids=sample_ids, scene=scene)


def _drawn(canvas: Canvas, mass: _Mass, random: np.random.Generator) -> Painted:
    """A mass at a place uniform over the brain."""
    ball = WavyBall(
        place_in(canvas.brain, random),
        mass.radius / canvas.spacing,
        mass.waviness,
        WavyEdge.draw(random, len(canvas.shape), WAVE_FREQUENCY),
    )
    box = ball.box(canvas.shape, (max(mass.halo, FADE * mass.push) + SOFT_MM) / canvas.spacing)
    beyond, outward = ball.beyond(canvas.shape, box)
    beyond *= canvas.spacing
    brain, before = canvas.brain[box], intensity_sd(canvas)
    below, pushed_share = _pushed(before, canvas, box, beyond, outward, mass.push)

    whiteness = ((below - GREY_SD) / (WHITE_SD - GREY_SD)).clip(0, 1)
    halo = (1.5 * (1 - beyond / mass.halo)).clip(0, 1) * whiteness
    below = below + halo * mass.halo_strength * (GREY_SD - 0.3 - below)

    inside = (0.5 - beyond / SOFT_MM).clip(0, 1)
    in_core = (0.5 - (beyond + mass.rim) / SOFT_MM).clip(0, 1)
    level = mass.rim_sd + in_core * (mass.core_sd - mass.rim_sd) + mass.roughness_sd * _rough(canvas, box, random)
    result = below + inside * (level - below)
    mask = np.zeros(canvas.shape, np.float32)
    mask[box] = np.where(brain, np.maximum(np.maximum(inside, halo), pushed_share), 0)
    return painted_sd(canvas, result.astype(np.float32), box), mask


def _pushed(
    before: FloatArray,
    canvas: Canvas,
    box: Box,
    beyond: NDArray[np.floating],
    outward: NDArray[np.floating],
    push: float,
) -> tuple[FloatArray, FloatArray]:
    """The tissue of a box pushed away from a mass, and how much of a place has visibly changed by it.

    A place at a distance d from the edge shows what was at d - push (1 - d / (FADE push))^2 before: nothing moves beyond
    FADE times the push, and nothing passes anything else.
    """
    here = before[box]
    if push <= 0:
        return here, np.zeros_like(here)
    way = push / canvas.spacing * (1 - beyond.clip(0) / (FADE * push)).clip(0, 1) ** 2
    change = moved(before, canvas.brain, box, -outward * way[..., None]) - here
    share = seen(np.where(beyond > 0, change, 0), canvas.brain[box], canvas.spacing)
    return here + share * change, share


def _rough(canvas: Canvas, box: Box, random: np.random.Generator) -> FloatArray:
    """Smooth noise of standard deviation 1 over a box."""
    noise = ndimage.gaussian_filter(random.normal(size=canvas.brain[box].shape), ROUGH_MM / canvas.spacing)
    return (noise / max(float(noise.std()), 1e-9)).astype(np.float32)
