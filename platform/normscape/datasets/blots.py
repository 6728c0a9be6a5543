"""Blots: the thesis's artificial anomaly (III.A.4, figure 2b), fixed once for all work that follows.

A blot is opaque, of one random colour, at a random place, with a wavy and slightly soft edge. It is a pure function of
(seed, sample id): never of the batch, the image or the order of calls. Of a brain it is a function of the brain mask, too: its
centre lies in the brain, and nothing outside is painted. 2D and 3D alike.

Its shape is defined in shares of the image's side (`BlotSpec`), so that the same blot at twice the resolution covers the same
place, or in millimetres (`BrainBlotSpec`), so that patches of every size and spacing, and whole volumes, have the same blots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normscape.config import DataConfig
from normscape.datasets.patches import INTENSITY_RANGE_SD
from normscape.datasets.shapes import Box, WavyBall, WavyEdge, place_in


@dataclass(frozen=True)
class BlotSpec:
    """What blots look like; the defaults are those of every experiment. Fractions are of the shortest side, unless noted."""

    radius_min_fraction: float = 0.08
    """Smallest radius."""
    radius_max_fraction: float = 0.16
    """Largest radius."""
    waviness_fraction: float = 0.15
    """Standard deviation of the edge's distance from the centre, as a share of the radius."""
    wave_frequency: float = 2.5
    """Standard deviation of the waves' frequencies, in radians along a circle of radius 1: larger is more ragged."""
    softness_fraction: float = 0.02
    """Width of the ramp from inside to outside: 0.64 pixels of an image of 32."""
    intensity_max: float = 1.0
    """Colours are uniform in [-intensity_max, intensity_max]."""

    def radius(self, share: float, side: int) -> float:
        """Between the smallest radius (share 0) and the largest (1), in pixels."""
        return (self.radius_min_fraction + (self.radius_max_fraction - self.radius_min_fraction) * share) * side

    def waviness(self, radius_px: float) -> float:
        """Standard deviation of the edge's distance from the centre, as a share of the radius."""
        return self.waviness_fraction

    def softness(self, side: int) -> float:
        """Width of the ramp, in pixels."""
        return self.softness_fraction * side


@dataclass(frozen=True)
class BrainBlotSpec:
    """What blots in a brain look like, in millimetres: the standard blots of every experiment on brains."""

    spacing_mm: float
    """Side of a voxel."""
    radius_min_mm: float = 4.0
    """Smallest radius."""
    radius_max_mm: float = 8.0
    """Largest radius."""
    waviness_mm: float = 2.0
    """How far the edge wanders in and out: two standard deviations of its distance from the centre."""
    wave_frequency: float = 2.5
    """Standard deviation of the waves' frequencies, in radians along a circle of radius 1: larger is more ragged."""
    softness_mm: float = 1.0
    """Width of the ramp from inside to outside."""
    intensity_max: float = 2.5 / INTENSITY_RANGE_SD
    """Intensities are uniform in [-intensity_max, intensity_max]: within 2.5 standard deviations of the brain's."""

    def radius(self, share: float, side: int) -> float:
        """Between the smallest radius (share 0) and the largest (1), in voxels."""
        return (self.radius_min_mm + (self.radius_max_mm - self.radius_min_mm) * share) / self.spacing_mm

    def waviness(self, radius_px: float) -> float:
        """Standard deviation of the edge's distance from the centre, as a share of the radius."""
        return self.waviness_mm / 2 / (radius_px * self.spacing_mm)

    def softness(self, side: int) -> float:
        """Width of the ramp, in voxels."""
        return self.softness_mm / self.spacing_mm


def standard_blots(data: DataConfig) -> BlotSpec | BrainBlotSpec:
    """What the blots of every experiment on these data look like."""
    return BrainBlotSpec(data.spacing_mm) if data.source == "brain" else BlotSpec()


@dataclass(frozen=True)
class Blot:
    """An image with a blot, and the blot."""

    image: Tensor
    """float32 (C, *S) in [-1, 1]."""
    mask: Tensor
    """float32 (*S) in [0, 1]: how much of a pixel the blot covers."""
    radius_px: float
    """Nominal radius, in pixels."""
    radius_mm: float
    """Nominal radius, in millimetres; not a number where the image has no such scale."""
    contrast: float
    """Mean absolute difference between the blot and what lies below it, in intensity units: 0 invisible, 2 white on black."""
    center_px: tuple[float, ...]
    """Centre in pixel indices, one entry an axis of S; between -0.5 and side - 0.5."""
    color: tuple[float, ...]
    """Intensity of each channel, in [-1, 1]."""


@dataclass(frozen=True)
class BlotBatch:
    """Blots of a batch, row by row; fields as in `Blot`."""

    images: Tensor
    """float32 (B, C, *S)."""
    masks: Tensor
    """float32 (B, *S)."""
    radius_px: Tensor
    """float32 (B,)."""
    radius_mm: Tensor
    """float32 (B,)."""
    contrast: Tensor
    """float32 (B,)."""
    center_px: Tensor
    """float32 (B, dims)."""
    color: Tensor
    """float32 (B, C)."""


@dataclass(frozen=True)
class BlotShape:
    """Where a blot lies; and the colour that belongs to it, for those that are painted with one."""

    cover: NDArray[np.float32]
    """(*S) in [0, 1]: how much of a pixel is covered."""
    box: Box
    """Part of the image outside of which nothing is covered."""
    radius_px: float
    """Nominal radius, in pixels."""
    center: NDArray[np.float64]
    """(dims,), in pixels; the first pixel spans 0 to 1."""
    color: NDArray[np.float64]
    """(C,), uniform in [-intensity_max, intensity_max]."""


def draw_shape(
    random: np.random.Generator,
    spec: BlotSpec | BrainBlotSpec,
    shape: Sequence[int],
    channels: int,
    brain: NDArray[np.bool_] | None = None,
) -> BlotShape:
    """Draw where a blot lies.

    The edge lies at r (1 + a n(u)) from the centre in direction u, where r is the radius, a the waviness, and n a sum of plane
    waves (`shapes.WavyEdge`): star-shaped, in any number of dimensions.

    Args:
        random: where random numbers come from.
        spec: what blots look like.
        shape: (*S) of the image.
        channels: of the image.
        brain: (*S), not empty: the centre is uniform over it, and only it is covered. When None, the centre is uniform over the
            image and everything may be covered.
    """
    dims, side = len(shape), min(shape)
    # The shape is drawn before the colour: it is the same for images of one channel and of three.
    center = random.uniform(size=dims) * shape
    radius = spec.radius(random.uniform(), side)
    edge = WavyEdge.draw(random, dims, spec.wave_frequency)
    color = random.uniform(-spec.intensity_max, spec.intensity_max, size=channels)
    if brain is not None:
        center = place_in(brain, random)
    softness = max(spec.softness(side), 1e-9)
    ball = WavyBall(center, radius, spec.waviness(radius), edge)
    box = (slice(None),) * dims if brain is None else ball.box(shape, softness)
    beyond, _ = ball.beyond(shape, box)
    cover = np.zeros(tuple(shape), np.float32)
    cover[box] = (0.5 - beyond / softness).clip(0, 1)
    if brain is not None:
        cover *= brain
    return BlotShape(cover, box, float(radius), center, color)


def draw_blot(
    image: Tensor,
    seed: int,
    sample_id: int,
    spec: BlotSpec | BrainBlotSpec | None = None,
    mask: Tensor | None = None,
) -> Blot:
    """Draw the blot of (seed, sample_id) into a copy of the image.

    Args:
        image: float (C, *S) in [-1, 1]; a picture, a patch or a whole volume.
        seed: the experiment's seed; not negative.
        sample_id: the sample's place in the full set; not negative.
        spec: what blots look like; `BlotSpec()` when None.
        mask: bool (1, *S) or (*S), the brain: the centre is uniform over it, and only it is painted. When None, the centre is
            uniform over the image and everything is painted.

    Raises:
        ValueError: the mask is empty.
    """
    spec = spec or BlotSpec()
    shape = tuple(image.shape[1:])
    brain = None if mask is None else mask.detach().cpu().numpy().reshape(shape) > 0
    if brain is not None and not brain.any():
        raise ValueError(f"sample {sample_id}: its brain mask is empty, there is no place for a blot")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, sample_id])))
    blot = draw_shape(random, spec, shape, image.shape[0], brain)
    painted = torch.from_numpy(blot.cover).to(image.device)

    paint = torch.from_numpy(blot.color.astype(np.float32)).to(image.device).view(-1, *[1] * len(shape))
    below = image.to(torch.float32)
    difference = (paint - below).abs().mean(dim=0)
    covered = float(painted.sum())
    return Blot(
        image=torch.lerp(below, paint.expand_as(below), painted),
        mask=painted,
        radius_px=blot.radius_px,
        radius_mm=blot.radius_px * spec.spacing_mm if isinstance(spec, BrainBlotSpec) else float("nan"),
        contrast=float((difference * painted).sum()) / covered if covered > 0 else 0.0,
        center_px=tuple(float(c) - 0.5 for c in blot.center),
        color=tuple(float(c) for c in blot.color),
    )


def draw_blots(
    images: Tensor,
    seed: int,
    sample_ids: Sequence[int] | Tensor,
    spec: BlotSpec | BrainBlotSpec | None = None,
    masks: Tensor | None = None,
) -> BlotBatch:
    """Draw each image's own blot; image i is what `draw_blot(images[i], seed, sample_ids[i], spec, masks[i])` gives.

    Args:
        images: float (B, C, *S) in [-1, 1].
        seed: the experiment's seed.
        sample_ids: (B,) places in the full set.
        spec: what blots look like; `BlotSpec()` when None.
        masks: bool (B, 1, *S), the brain in each image; None when everything may be painted.

    Raises:
        ValueError: a mask is empty.
    """
    ids = [int(i) for i in sample_ids]
    if len(ids) != len(images):
        raise ValueError(f"{len(images)} images need as many sample ids, found {len(ids)}")
    dims, channels = images.ndim - 2, images.shape[1]
    brains = [None] * len(ids) if masks is None else list(masks)
    blots = [draw_blot(image, seed, sample_id, spec, brain) for image, sample_id, brain in zip(images, ids, brains, strict=True)]
    return BlotBatch(
        images=torch.stack([b.image for b in blots]) if blots else images.to(torch.float32),
        masks=torch.stack([b.mask for b in blots]) if blots else images.new_zeros((0, *images.shape[2:]), dtype=torch.float32),
        radius_px=torch.tensor([b.radius_px for b in blots]),
        radius_mm=torch.tensor([b.radius_mm for b in blots]),
        contrast=torch.tensor([b.contrast for b in blots]),
        center_px=torch.tensor([b.center_px for b in blots]).view(-1, dims),
        color=torch.tensor([b.color for b in blots]).view(-1, channels),
    )
