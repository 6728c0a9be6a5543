"""Images moved smoothly, and where a change is large enough to be seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies.drawing import FloatArray
from normscape.datasets.shapes import Box

SEEN_SD = (0.1, 0.4)
"""Local change, in standard deviations of the brain's intensities, up to which a place counts as unchanged, and from which on as
changed altogether."""
SEEN_MM = 1.0
"""Standard deviation of the Gaussian that changes are pooled with."""


def moved(values: FloatArray, brain: NDArray[np.bool_], box: Box, shift: NDArray[np.floating]) -> FloatArray:
    """What lies `shift` away from each place of a box: (*box).

    What is not brain, or beyond the image's end, is taken from the nearest brain. Between voxels it is interpolated linearly.

    Args:
        values: (*S).
        brain: (*S).
        box: part of the image, with its ends given.
        shift: vectors in voxels, (*box, dims).
    """
    reach = int(np.ceil(np.abs(shift).max(initial=0))) + 1
    wide = tuple(slice(max(p.start - reach, 0), min(p.stop + reach, n)) for p, n in zip(box, brain.shape, strict=True))
    filled = filled_outside(values[wide], brain[wide])
    place = np.stack(np.meshgrid(*(np.arange(p.start, p.stop) for p in box), indexing="ij"), axis=-1)
    start = np.array([p.start for p in wide])
    found = ndimage.map_coordinates(filled, np.moveaxis(place - start + shift, -1, 0), order=1, mode="nearest")
    return np.asarray(found, np.float32)


def filled_outside(values: FloatArray, brain: NDArray[np.bool_]) -> FloatArray:
    """Values (*S), outside the brain those of the nearest brain."""
    if brain.all() or not brain.any():
        return values
    nearest = ndimage.distance_transform_edt(~brain, return_distances=False, return_indices=True)
    return values[tuple(nearest)]


def seen(change_sd: FloatArray, brain: NDArray[np.bool_], spacing: float) -> FloatArray:
    """How much of a place has visibly changed, in [0, 1]: from the local root mean square of the change.

    Args:
        change_sd: (*S), in standard deviations of the brain's intensities.
        brain: (*S); changes outside do not count.
        spacing: millimetres of a voxel's side.
    """
    low, high = SEEN_SD
    power = ndimage.gaussian_filter(np.where(brain, change_sd, 0).astype(np.float32) ** 2, SEEN_MM / spacing)
    share = ((np.sqrt(power) - low) / (high - low)).clip(0, 1)
    return np.asarray(share, np.float32)
