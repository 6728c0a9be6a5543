"""Blots: the thesis's artificial anomaly (III.A.4, figure 2b), fixed once for all work that follows.

A blot is opaque, of one random colour, at a random place, with a wavy and slightly soft edge. It is a pure function of
(seed, sample id): never of the batch, the image or the order of calls. Its shape is defined in shares of the image's side,
so that the same blot at twice the resolution covers the same place. 2D and 3D alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WAVES = 6
"""Plane waves that make the edge wavy."""


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


@dataclass(frozen=True)
class Blot:
    """An image with a blot, and the blot."""

    image: Tensor
    """float32 (C, *S) in [-1, 1]."""
    mask: Tensor
    """float32 (*S) in [0, 1]: how much of a pixel the blot covers."""
    radius_px: float
    """Nominal radius, in pixels."""
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
    contrast: Tensor
    """float32 (B,)."""
    center_px: Tensor
    """float32 (B, dims)."""
    color: Tensor
    """float32 (B, C)."""


def draw_blot(image: Tensor, seed: int, sample_id: int, spec: BlotSpec | None = None) -> Blot:
    """Draw the blot of (seed, sample_id) into a copy of the image.

    The edge lies at r (1 + a n(u)) from the centre in direction u, where r is the radius, a the waviness, and n a sum of K plane
    waves sqrt(2 / K) cos(f_k . u + phi_k) on the unit circle (sphere), less its mean: star-shaped, in any number of dimensions.

    Args:
        image: float (C, *S) in [-1, 1].
        seed: the experiment's seed; not negative.
        sample_id: the sample's place in the full set; not negative.
        spec: what blots look like; the house's defaults when None.
    """
    spec = spec or BlotSpec()
    shape = tuple(image.shape[1:])
    dims, side = len(shape), min(shape)
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, sample_id])))
    # The shape is drawn before the colour: it is the same for images of one channel and of three.
    center = random.uniform(size=dims) * shape
    radius = random.uniform(spec.radius_min_fraction, spec.radius_max_fraction) * side
    frequencies = random.normal(scale=spec.wave_frequency, size=(WAVES, dims))
    phases = random.uniform(0, 2 * np.pi, size=WAVES)
    circle = random.normal(size=(256, dims))
    color = random.uniform(-1, 1, size=image.shape[0])

    def waves(directions: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(2 / WAVES) * np.cos(directions @ frequencies.T + phases).sum(axis=-1)

    offset = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij"), axis=-1) - center  # (*S, dims)
    distance = np.linalg.norm(offset, axis=-1)
    direction = offset / np.maximum(distance, 1e-9)[..., None]
    mean = waves(circle / np.linalg.norm(circle, axis=1, keepdims=True)).mean()
    edge = radius * np.maximum(1 + spec.waviness_fraction * (waves(direction) - mean), 0.3)
    softness = max(spec.softness_fraction * side, 1e-9)
    mask = torch.from_numpy((0.5 - (distance - edge) / softness).clip(0, 1).astype(np.float32)).to(image.device)

    paint = torch.from_numpy(color.astype(np.float32)).to(image.device).view(-1, *[1] * dims)
    below = image.to(torch.float32)
    difference = (paint - below).abs().mean(dim=0)
    covered = float(mask.sum())
    return Blot(
        image=torch.lerp(below, paint.expand_as(below), mask),
        mask=mask,
        radius_px=float(radius),
        contrast=float((difference * mask).sum()) / covered if covered > 0 else 0.0,
        center_px=tuple(float(c) - 0.5 for c in center),
        color=tuple(float(c) for c in color),
    )


def draw_blots(images: Tensor, seed: int, sample_ids: Sequence[int] | Tensor, spec: BlotSpec | None = None) -> BlotBatch:
    """Draw each image's own blot; image i is what `draw_blot(images[i], seed, sample_ids[i], spec)` gives.

    Args:
        images: float (B, C, *S) in [-1, 1].
        seed: the experiment's seed.
        sample_ids: (B,) places in the full set.
        spec: what blots look like; the house's defaults when None.
    """
    ids = [int(i) for i in sample_ids]
    if len(ids) != len(images):
        raise ValueError(f"{len(images)} images need as many sample ids, found {len(ids)}")
    dims, channels = images.ndim - 2, images.shape[1]
    blots = [draw_blot(image, seed, sample_id, spec) for image, sample_id in zip(images, ids, strict=True)]
    return BlotBatch(
        images=torch.stack([b.image for b in blots]) if blots else images.to(torch.float32),
        masks=torch.stack([b.mask for b in blots]) if blots else images.new_zeros((0, *images.shape[2:]), dtype=torch.float32),
        radius_px=torch.tensor([b.radius_px for b in blots]),
        contrast=torch.tensor([b.contrast for b in blots]),
        center_px=torch.tensor([b.center_px for b in blots]).view(-1, dims),
        color=torch.tensor([b.color for b in blots]).view(-1, channels),
    )
