"""Noise that is smooth over several pixels: what networks learn to remove resembles an anomaly more than grain does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


def coarse_noise(count: int, shape: Sequence[int], *, cells: int, random: torch.Generator) -> Tensor:
    """Gaussian noise on a coarse grid, interpolated and rolled to a random place (Kascenas et al. 2022).

    Args:
        count: B.
        shape: (C, *S).
        cells: nodes of the grid along a side.
        random: source of all randomness.

    Returns:
        float32 (B, C, *S) on the CPU, of variance 1 at the grid's nodes and less between them.
    """
    dims = len(shape) - 1
    grid = torch.randn(count, shape[0], *(cells,) * dims, generator=random)
    noise = F.interpolate(grid, size=tuple(shape[1:]), mode=_INTERPOLATION[dims], align_corners=True)
    shifts = torch.randint(shape[-1], (dims,), generator=random).tolist()
    return noise.roll(shifts, dims=tuple(range(2, 2 + dims)))


def pyramid_noise(count: int, shape: Sequence[int], *, persistence: float, random: torch.Generator) -> Tensor:
    """A sum of noises from coarse to fine, in place of AnoDDPM's simplex noise (Wyatt et al. 2022).

    Args:
        count: B.
        shape: (C, *S); S a power of two.
        persistence: weight of a noise relative to the next coarser one.
        random: source of all randomness.

    Returns:
        float32 (B, C, *S) on the CPU; the mean square of each is 1.
    """
    dims, weight = len(shape) - 1, 1.0
    total, nodes = torch.zeros(count, *shape), 2
    while nodes <= shape[-1]:
        grid = torch.randn(count, shape[0], *(nodes,) * dims, generator=random)
        total += weight * F.interpolate(grid, size=tuple(shape[1:]), mode=_INTERPOLATION[dims], align_corners=False)
        nodes, weight = 2 * nodes, weight * persistence
    size = total.square().flatten(1).mean(1).sqrt()
    return total / size.view(-1, *(1,) * (dims + 1))
