"""Scanners of the simulated cohort: from tissue levels to the intensities of a T1-weighted scan.

Three scanners differ in contrast, bias field, noise and resolution; a session differs from the next by gain, bias and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from normscape.datasets.simulated_anatomy import CONTRAST_LOSS, SITES, Subject
from normscape.datasets.simulated_fields import refined, smooth_noise

WHITE = 1000.0
"""Intensity of white matter at gain 1, before the bias field."""


@dataclass(frozen=True)
class Scanner:
    """One scanner. Intensities are relative to the white matter's."""

    csf: float
    grey: float
    noise: float
    """Standard deviation of the noise in each of the two receiver channels (Rician noise)."""
    bias: float
    """Standard deviation of the logarithm of the bias field."""
    blur_mm: tuple[float, float, float]
    """Standard deviation of the point spread along z, y, x."""


SCANNERS = dict(
    zip(
        SITES,
        (
            Scanner(csf=0.24, grey=0.66, noise=0.016, bias=0.08, blur_mm=(0.5, 0.5, 0.7)),
            Scanner(csf=0.32, grey=0.72, noise=0.022, bias=0.05, blur_mm=(0.5, 0.5, 0.5)),
            Scanner(csf=0.18, grey=0.60, noise=0.019, bias=0.11, blur_mm=(0.8, 0.6, 0.6)),
        ),
        strict=True,
    )
)


def contrast_curve(level: Tensor, csf: float, grey: float) -> Tensor:
    """Intensity of a tissue level: linear between CSF (0), grey (0.5) and white matter (1), and straight on beyond."""
    below, above = 2 * (grey - csf), 2 * (1 - grey)
    return grey + torch.where(level < 0.5, below, above) * (level - 0.5)


def acquire(
    level: Tensor, mask: Tensor, subject: Subject, random: np.random.Generator, *, spacing_mm: float, bias: bool
) -> NDArray[np.float32]:
    """A stripped T1-weighted scan, 0 outside the mask.

    Args:
        level: (Z, Y, X) tissue levels on the scan's grid.
        mask: bool (Z, Y, X).
        subject: whose site and age decide the contrast.
        random: of this session.
        spacing_mm: side of a voxel.
        bias: with a bias field; without, as if it had been corrected.
    """
    scanner = SCANNERS[subject.site]
    shape = level.shape
    csf, grey, gain = scanner.csf + random.normal(0, 0.01), scanner.grey + random.normal(0, 0.01), random.lognormal(0.0, 0.1)
    grey = 1 - (1 - grey) * (1 - CONTRAST_LOSS * (subject.age_years - 20))
    clean = ndimage.gaussian_filter(contrast_curve(level, csf, grey).numpy(), [b / spacing_mm for b in scanner.blur_mm])
    field = smooth_noise(random, 1, (8, 10, 8), 2.0)
    if bias:
        clean *= np.exp(scanner.bias * refined(torch.from_numpy(field), shape)[0].numpy())
    real, imaginary = scanner.noise * random.standard_normal((2, *shape), dtype=np.float32)
    scan = gain * WHITE * np.hypot(clean + real, imaginary)
    return np.where(mask.numpy(), np.maximum(scan, 1.0), 0.0).astype(np.float32)
