"""Smooth deformations of the simulated cohort: velocity fields, their flow, and sampling along it.

A field lives on a coarse *control grid* that spans the same box as the images: first and last nodes of both lie on the same
planes, so that normalised coordinates mean the same place on either. Displacements are in millimetres, in the order z, y, x.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

SQUARINGS = 6
"""2 ** 6 steps of the flow: steps of at most 0.2 mm for displacements of 12 mm."""


def box_points(shape: Sequence[int], extent_mm: Tensor) -> Tensor:
    """Millimetres from the box's first corner of every node of a grid that spans it: `(*shape, 3)`, z, y, x."""
    axes = [torch.linspace(0.0, float(length), n) for n, length in zip(shape, extent_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def sample(image: Tensor, points_mm: Tensor, extent_mm: Tensor) -> Tensor:
    """Trilinear values of an image at places in its box; zero outside.

    Args:
        image: (C, Z, Y, X), spanning the box.
        points_mm: (A, B, D, 3) places in millimetres from the first corner, z, y, x.
        extent_mm: (3,) side lengths of the box.

    Returns:
        (C, A, B, D).
    """
    grid = (points_mm / extent_mm * 2 - 1).flip(-1)  # grid_sample wants x, y, z
    return F.grid_sample(image[None], grid[None], align_corners=True)[0]


def flow(velocity_mm: Tensor, extent_mm: Tensor) -> Tensor:
    """Displacement after following a stationary velocity field for one unit of time, by scaling and squaring.

    The flow of a smooth field is invertible (that of the negated field is its inverse), so nothing tears or folds
    (Arsigny et al. 2006, "A log-Euclidean framework for statistics on diffeomorphisms").

    Args:
        velocity_mm: (3, Z, Y, X) on the control grid.
        extent_mm: (3,) side lengths of the box.
    """
    points = box_points(velocity_mm.shape[1:], extent_mm).to(velocity_mm)
    displacement = velocity_mm / 2**SQUARINGS
    for _ in range(SQUARINGS):
        displacement = displacement + sample(displacement, points + displacement.movedim(0, -1), extent_mm)
    return displacement


def refined(field: Tensor, shape: Sequence[int]) -> Tensor:
    """A field (C, ...) on the control grid, interpolated linearly onto a finer grid of the same box: (C, *shape)."""
    return F.interpolate(field[None], size=tuple(shape), mode="trilinear", align_corners=True)[0]


def smooth_noise(random: np.random.Generator, channels: int, shape: Sequence[int], correlation: float) -> NDArray[np.float32]:
    """Gaussian random fields of unit variance: (channels, *shape); `correlation` is the smoothing width in nodes."""
    noise = random.standard_normal((channels, *shape), dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, (0, correlation, correlation, correlation), mode="wrap", truncate=3.0)
    return np.asarray(smooth / smooth.std(axis=(1, 2, 3), keepdims=True), np.float32)
