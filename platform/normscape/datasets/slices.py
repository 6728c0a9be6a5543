"""Slices through volumes as readers of scans are used to see them: the subject's right at the left, front and top up.

Volumes are (Z, Y, X) in RAS orientation: x grows to the subject's right, y to the front, z upwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

AXIAL, CORONAL, SAGITTAL = 0, 1, 2
"""The axis that a slice cuts across."""
ROOM = 2
"""Voxels around a brain."""


def brain_box(mask: NDArray[np.generic]) -> tuple[slice, slice, slice]:
    """What a mask spans, with some room around it; everything for an empty one."""
    found = np.argwhere(np.asarray(mask) != 0)
    if not len(found):
        return slice(0, mask.shape[0]), slice(0, mask.shape[1]), slice(0, mask.shape[2])
    low, high = (found.min(0) - ROOM).clip(0), found.max(0) + 1 + ROOM
    z, y, x = (slice(int(a), int(min(b, n))) for a, b, n in zip(low, high, mask.shape, strict=True))
    return z, y, x


def panel(
    volume: NDArray[np.generic],
    centre: Sequence[int],
    box: tuple[slice, slice, slice],
    axes: Sequence[int] = (AXIAL, CORONAL, SAGITTAL),
) -> NDArray[np.generic]:
    """Slices through one place, side by side on squares, 0 around them: (side, len(axes) * side).

    Args:
        volume: (Z, Y, X).
        centre: voxel z, y, x that all slices go through.
        box: the part that is shown, see `brain_box`.
        axes: which slices.
    """
    side = max(part.stop - part.start for part in box)
    squares = []
    for axis in axes:
        window = tuple(part for at, part in enumerate(box) if at != axis)
        plane = np.take(volume, centre[axis], axis=axis)[window][::-1]
        plane = plane if axis == SAGITTAL else plane[:, ::-1]
        square = np.zeros((side, side), volume.dtype)
        top, left = (side - plane.shape[0]) // 2, (side - plane.shape[1]) // 2
        square[top : top + plane.shape[0], left : left + plane.shape[1]] = plane
        squares.append(square)
    return np.concatenate(squares, axis=1)


def to_grey(volume: NDArray[np.floating], mask: NDArray[np.generic], low: float = -1.0, high: float = 1.0) -> NDArray[np.uint8]:
    """Values between low and high as uint8 1..255 under a mask, 0 outside."""
    scaled = (np.asarray(volume, np.float32) - low) / (high - low) * 254 + 1
    return np.where(np.asarray(mask) != 0, scaled.clip(1, 255).round(), 0).astype(np.uint8)
