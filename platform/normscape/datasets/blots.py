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

WAVES = 6
"""Plane waves that make the edge wavy."""
SHORTEST_SHARE = 0.3
"""The edge stays at least this share of the radius away from the centre."""


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


def draw_blot(
    image: Tensor,
    seed: int,
    sample_id: int,
    spec: BlotSpec | BrainBlotSpec | None = None,
    mask: Tensor | None = None,
) -> Blot:
    """Draw the blot of (seed, sample_id) into a copy of the image.

    The edge lies at r (1 + a n(u)) from the centre in direction u, where r is the radius, a the waviness, and n a sum of K plane
    waves sqrt(2 / K) cos(f_k . u + phi_k) on the unit circle (sphere), less its mean: star-shaped, in any number of dimensions.

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
    dims, side = len(shape), min(shape)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, sample_id])))
    # The shape is drawn before the colour: it is the same for images of one channel and of three.
    center = random.uniform(size=dims) * shape
    radius = spec.radius(random.uniform(), side)
    frequencies = random.normal(scale=spec.wave_frequency, size=(WAVES, dims))
    phases = random.uniform(0, 2 * np.pi, size=WAVES)
    circle = random.normal(size=(256, dims))
    color = random.uniform(-spec.intensity_max, spec.intensity_max, size=image.shape[0])
    waviness, softness = spec.waviness(radius), max(spec.softness(side), 1e-9)
    box = (slice(None),) * dims
    if mask is not None:
        brain = mask.detach().cpu().numpy().reshape(shape) > 0
        voxels = np.flatnonzero(brain)
        if not len(voxels):
            raise ValueError(f"sample {sample_id}: its brain mask is empty, there is no place for a blot")
        center = np.array(np.unravel_index(voxels[int(random.uniform() * len(voxels))], shape)) + random.uniform(size=dims)
        # Nothing farther away can be painted: the sum of all waves at most, less the same.
        reach = radius * (1 + waviness * 2 * np.sqrt(2 * WAVES)) + softness + 1
        box = tuple(slice(max(int(c - reach), 0), int(c + reach) + 1) for c in center)

    def waves(directions: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(2 / WAVES) * np.cos(directions @ frequencies.T + phases).sum(axis=-1)

    axes = (np.arange(n, dtype=np.float64)[part] + 0.5 for n, part in zip(shape, box, strict=True))
    offset = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - center  # (*S, dims), of the box
    distance = np.linalg.norm(offset, axis=-1)
    direction = offset / np.maximum(distance, 1e-9)[..., None]
    mean = waves(circle / np.linalg.norm(circle, axis=1, keepdims=True)).mean()
    edge = radius * np.maximum(1 + waviness * (waves(direction) - mean), SHORTEST_SHARE)
    cover = np.zeros(shape, np.float32)
    cover[box] = (0.5 - (distance - edge) / softness).clip(0, 1)
    if mask is not None:
        cover *= brain
    painted = torch.from_numpy(cover).to(image.device)

    paint = torch.from_numpy(color.astype(np.float32)).to(image.device).view(-1, *[1] * dims)
    below = image.to(torch.float32)
    difference = (paint - below).abs().mean(dim=0)
    covered = float(painted.sum())
    return Blot(
        image=torch.lerp(below, paint.expand_as(below), painted),
        mask=painted,
        radius_px=float(radius),
        radius_mm=float(radius) * spec.spacing_mm if isinstance(spec, BrainBlotSpec) else float("nan"),
        contrast=float((difference * painted).sum()) / covered if covered > 0 else 0.0,
        center_px=tuple(float(c) - 0.5 for c in center),
        color=tuple(float(c) for c in color),
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
