"""Structural similarity, one value a sample (thesis II.B.1; Wang et al. 2004)."""

from __future__ import annotations

import torch
from torch import Tensor

from normscape.losses.masked import weighted_mean

WINDOW, SIGMA = 7, 1.5
"""Side and standard deviation of the Gaussian window, in pixels; a side of 11, as in the paper, hardly fits a patch of 16."""
DATA_RANGE = 2.0
"""Images lie in [-1, 1]."""


def structural_similarity(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean SSIM of two batches of images over all windows that lie within the image.

    The same numbers as MONAI's `compute_ssim_and_cs`, but a window is three products with a small matrix instead of a
    convolution with 7^3 weights, which takes several times as long on a CPU.

    Args:
        a, b: `(B, C, *S)` in [-1, 1], 2D or 3D, sides of at least 7.
        mask: boolean `(B, 1, *S)`; a window counts by the share of the mask that it sees. All count alike when empty.

    Returns:
        `(B,)`, 1 for equal images; 1 where the mask is empty.
    """
    channels = a.shape[1]
    mean_a, mean_b, square_a, square_b, product = _windows(torch.cat([a, b, a * a, b * b, a * b], dim=1)).split(channels, dim=1)
    variance_a, variance_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    similarity = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast
    weight = None if mask is None else _windows(mask.to(a.dtype)).flatten(1)
    return 1 - weighted_mean(1 - similarity.mean(1).flatten(1), weight)


def _windows(x: Tensor) -> Tensor:
    """Gaussian mean over every window within `(B, C, *S)`: `(B, C, *(S - 6))`."""
    side = x.shape[-1]
    offset = torch.arange(side, device=x.device)[:, None] - torch.arange(side - WINDOW + 1, device=x.device)
    within = (offset >= 0) & (offset < WINDOW)
    matrix = torch.exp(-((offset - WINDOW // 2) ** 2) / (2 * SIGMA**2)) * within
    matrix = (matrix / matrix.sum(0)).to(x.dtype)
    for axis in range(2, x.ndim):
        x = (x.transpose(axis, -1) @ matrix).transpose(axis, -1)
    return x
