"""Star-shaped regions with a wavy edge, in any number of dimensions: the shape of blots and of many lesions.

Lengths are in voxels (pixels). Voxel i of an axis spans i to i + 1; its middle is i + 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WAVES = 6
"""Plane waves that make an edge wavy."""
SHORTEST_SHARE = 0.3
"""The edge stays at least this share of the radius away from the centre."""

Box = tuple[slice, ...]
"""A part of an image, one slice an axis."""


@dataclass(frozen=True)
class WavyEdge:
    """How far an edge lies in each direction: a sum of K plane waves sqrt(2 / K) cos(f_k . u + phi_k) on the unit circle
    (sphere), less its mean. Its standard deviation is about 1."""

    frequencies: NDArray[np.float64]
    """(WAVES, dims)."""
    phases: NDArray[np.float64]
    """(WAVES,)."""
    mean: float
    """Of the waves over all directions."""

    @classmethod
    def draw(cls, random: np.random.Generator, dims: int, frequency: float) -> WavyEdge:
        """Draw an edge; a larger frequency, in radians along a circle of radius 1, is more ragged."""
        frequencies = random.normal(scale=frequency, size=(WAVES, dims))
        phases = random.uniform(0, 2 * np.pi, size=WAVES)
        circle = random.normal(size=(256, dims))
        bare = cls(frequencies, phases, 0.0)
        return cls(frequencies, phases, bare.height(circle / np.linalg.norm(circle, axis=1, keepdims=True)).mean())

    def height(self, direction: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of unit vectors (..., dims): (...)."""
        return np.sqrt(2 / WAVES) * np.cos(direction @ self.frequencies.T + self.phases).sum(axis=-1) - self.mean


@dataclass(frozen=True)
class WavyBall:
    """What lies within r (1 + a n(u)) of a centre in direction u: r is the radius, a the waviness, n the edge."""

    center: NDArray[np.float64]
    """(dims,)."""
    radius: float
    waviness: float
    """Standard deviation of the edge's distance from the centre, as a share of the radius."""
    edge: WavyEdge

    def box(self, shape: Sequence[int], margin: float) -> Box:
        """The part of an image that can lie within `margin` of the ball: the sum of all waves at most, less the same."""
        reach = self.radius * (1 + self.waviness * 2 * np.sqrt(2 * WAVES)) + margin + 1
        return around(self.center, reach, shape)

    def beyond(self, shape: Sequence[int], box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Distance from the edge, negative inside, (*box); and the unit vectors away from the centre, (*box, dims)."""
        offset = offsets(shape, self.center, box)
        distance = np.linalg.norm(offset, axis=-1)
        direction = offset / np.maximum(distance, 1e-9)[..., None]
        edge = self.radius * np.maximum(1 + self.waviness * self.edge.height(direction), SHORTEST_SHARE)
        return distance - edge, direction


def around(center: NDArray[np.float64], reach: float, shape: Sequence[int]) -> Box:
    """The part of an image within `reach` of a point along every axis; at least one voxel for a point in the image."""
    return tuple(slice(max(int(c - reach), 0), min(int(c + reach) + 1, n)) for c, n in zip(center, shape, strict=True))


def offsets(shape: Sequence[int], center: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """Vectors from a point to the voxels' middles: (*box, dims)."""
    axes = (np.arange(n, dtype=np.float64)[part] + 0.5 for n, part in zip(shape, box, strict=True))
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1) - center


def place_in(region: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.float64]:
    """A point, uniform over the voxels of a region that is not empty: (dims,)."""
    voxels = np.flatnonzero(region)
    voxel = np.unravel_index(voxels[int(random.uniform() * len(voxels))], region.shape)
    return np.array(voxel) + random.uniform(size=region.ndim)


def ball_radius(volume: float, dims: int) -> float:
    """Radius of the ball (disc, where dims is 2) of this volume (area)."""
    return float((3 * volume / (4 * np.pi)) ** (1 / 3) if dims == 3 else (volume / np.pi) ** 0.5)
