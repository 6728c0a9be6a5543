"""What a place of a T1 brain is made of, told from its intensity in standard deviations of the whole brain's.

Patches are z-scores of their scan, so these levels hold in patches and whole volumes alike. Where an image shows no outside of
the brain, distances to it are infinite.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from normscape.datasets.anomalies.drawing import Canvas, FloatArray
from normscape.datasets.patches import INTENSITY_RANGE_SD

CSF_SD, GREY_SD, WHITE_SD = -2.0, 0.1, 1.1
"""Typical intensities of fluid, grey and white matter in T1: where the histograms of stripped scans have their peaks."""
FLUID_BELOW_SD, WHITE_ABOVE_SD = -1.0, 0.6
"""Where smoothed intensities change from fluid to grey, and from grey to white matter."""
NOISE_MM = 1.0
"""Standard deviation of the Gaussian that is laid over an image before tissues are told apart."""


def intensity_sd(canvas: Canvas) -> FloatArray:
    """Intensities (*S) in standard deviations of the brain's."""
    return canvas.image[0] * np.float32(INTENSITY_RANGE_SD)


def painted_sd(canvas: Canvas, changed_sd: FloatArray, place: tuple[slice, ...]) -> FloatArray:
    """The image (1, *S) with a part of it replaced by intensities in standard deviations."""
    image = canvas.image.copy()
    image[0][place] = changed_sd / np.float32(INTENSITY_RANGE_SD)
    return image


def smoothed(values: FloatArray, brain: NDArray[np.bool_], width: float) -> FloatArray:
    """Mean over the brain around each place, weighted by a Gaussian of this width in voxels; the value itself outside."""
    inside = brain.astype(np.float32)
    weight = ndimage.gaussian_filter(inside, width)
    mean = ndimage.gaussian_filter(values * inside, width) / np.maximum(weight, 1e-3)
    return np.where(brain, mean, values).astype(np.float32)


def fluid_and_white(canvas: Canvas) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where there is fluid, and where there is white matter, (*S) each."""
    level = smoothed(intensity_sd(canvas), canvas.brain, NOISE_MM / canvas.spacing)
    return canvas.brain & (level < FLUID_BELOW_SD), canvas.brain & (level > WHITE_ABOVE_SD)


def distance_to(region: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Voxels from each place to the nearest one of a region, 0 in it; infinite where the region is empty."""
    if not region.any():
        return np.full(region.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~region), np.float64)


def depth_mm(canvas: Canvas) -> NDArray[np.float64]:
    """Millimetres from each place to the nearest one that is known to lie outside the brain."""
    return distance_to(~canvas.brain) * canvas.spacing
