"""Whole volumes as overlapping patches: where patches lie, and blending them back with a window (thesis II.B).

A patch of side s is named by its centre: the voxel at its index s // 2, as in `normscape.datasets.patches`. Everything here lies
inside its volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def patch_grid(mask: ArrayLike, size: int, stride: int, max_background: float) -> NDArray[np.int64]:
    """Centres of a regular grid of patches that covers a brain.

    Along each axis the first patch begins where the mask begins and the last one ends where it ends, so the last step may be
    shorter than the stride; a mask that is narrower than a patch gets one in its middle.

    Args:
        mask: (Z, Y, X), not 0 in the brain.
        size: side of a patch, in voxels.
        stride: voxels from one patch to the next.
        max_background: patches with a larger share outside the mask are left out; voxels that only those would cover stay bare.

    Returns:
        (P, 3) voxels z, y, x; none for an empty mask.

    Raises:
        ValueError: the volume is smaller than a patch.
    """
    brain = np.asarray(mask) != 0
    if min(brain.shape) < size:
        raise ValueError(f"a volume of {brain.shape} voxels holds no patch with a side of {size}")
    found = np.argwhere(brain)
    if not len(found):
        return np.empty((0, 3), np.int64)
    axes = [
        _starts(int(low), int(high) + 1, side, size, stride)
        for low, high, side in zip(found.min(0), found.max(0), brain.shape, strict=True)
    ]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    total = np.pad(brain.astype(np.int64), [(1, 0)] * 3).cumsum(0).cumsum(1).cumsum(2)  # voxels before each corner
    low, high = corners.T, corners.T + size
    held = np.zeros(len(corners), np.int64)
    for ends in np.ndindex(2, 2, 2):
        sign = (-1) ** (3 - sum(ends))
        held += sign * total[tuple(high[axis] if end else low[axis] for axis, end in enumerate(ends))]
    return corners[held >= (1 - max_background) * size**3] + size // 2


def _starts(begin: int, end: int, side: int, size: int, stride: int) -> NDArray[np.int64]:
    """First voxels of the patches along one axis that cover [begin, end) of a volume of this side."""
    last = end - size
    if last <= begin:
        middle = (begin + last) // 2
        return np.array([min(max(middle, 0), side - size)])
    return np.unique(np.append(np.arange(begin, last, stride), last))


def hann_window(size: int) -> Tensor:
    """Weights float64 (*S), highest in the middle and nowhere 0: products of sin^2(pi (i + 1/2) / s) along the axes."""
    edge = torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size).square()
    return edge[:, None, None] * edge[None, :, None] * edge[None, None, :]


class Blender:
    """A volume from overlapping patches: at each voxel the mean of all patches there, weighted by a window.

    Patches come in batches of any size; memory is that of two volumes, whatever their number.

    Args:
        shape: (Z, Y, X) of the volume.
        window: weights of a patch's voxels, positive (*S); a whole number stands for the Hann window of that side.
    """

    def __init__(self, shape: Sequence[int], window: Tensor | int) -> None:
        self.shape = tuple(shape)
        self.window = (hann_window(window) if isinstance(window, int) else window).to("cpu", torch.float64)
        if not bool((self.window > 0).all()):
            raise ValueError("a window needs a positive weight at every voxel")
        self._sum = torch.zeros(self.shape, dtype=torch.float64)
        self._weight = torch.zeros(self.shape, dtype=torch.float64)

    def add(self, patches: Tensor, centres: ArrayLike, masks: Tensor | None = None) -> None:
        """Lay patches onto the volume.

        Args:
            patches: (B, 1, *S); (B,) for patches of one value each.
            centres: (B, 3) voxels z, y, x.
            masks: (B, 1, *S), not 0 where a patch counts; everywhere when None.

        Raises:
            ValueError: a patch leaves the volume.
        """
        size = self.window.shape[0]
        index = _flat_places(torch.as_tensor(np.asarray(centres)), self.shape, size).flatten()
        weight = self.window.expand(len(patches), *self.window.shape)
        if masks is not None:
            weight = weight * (masks.cpu() != 0).view(weight.shape)
        values = patches.detach().cpu().double()
        values = values.view(-1, 1, 1, 1) if values.ndim == 1 else values.view(weight.shape)
        self._sum.view(-1).index_add_(0, index, (values * weight).flatten())
        self._weight.view(-1).index_add_(0, index, weight.flatten())

    @property
    def covered(self) -> Tensor:
        """Where at least one patch lies: bool (Z, Y, X)."""
        return self._weight > 0

    def result(self, fill: float = 0.0) -> Tensor:
        """The volume, float32 (Z, Y, X); `fill` where no patch lies."""
        mean = self._sum / self._weight.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(self.covered, mean, fill).float()


def _flat_places(centres: Tensor, shape: tuple[int, ...], size: int) -> Tensor:
    """Place in the flattened volume of every voxel of every patch: int64 (B, *S)."""
    corner = centres.to("cpu", torch.int64) - size // 2
    if len(corner) and bool(((corner < 0) | (corner + size > torch.tensor(shape))).any()):
        raise ValueError(f"a patch with a side of {size} leaves the volume of {tuple(shape)} voxels")
    z, y, x = (corner[:, axis, None] + torch.arange(size) for axis in range(3))
    return (z[:, :, None, None] * shape[1] + y[:, None, :, None]) * shape[2] + x[:, None, None, :]
