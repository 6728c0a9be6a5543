"""Neighbourhoods of every place of an image, and the worst of them: what a score and a map are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.baselines import Scores
from normscape.datasets.anomalies import Scene
from normscape.losses.masked import worst

WIDTH_MM = 8.0
"""Side of a neighbourhood, unless a setting says otherwise: the least diameter of a standard blot."""
WIDTH_SHARE = 8
"""Likewise where there is no scale: this fraction of the image's side."""
_TINY = 1e-6


def neighbourhood_side(width: float | None, scene: Scene, side: int, *, scale: float = 1.0) -> int:
    """Side of a neighbourhood in pixels (voxels), from 1 to the image's.

    Args:
        width: in mm, or in pixels where images have no such scale; None: 8 mm, or an eighth of the side and at least 2 pixels.
        scene: what a voxel measures.
        side: of the images.
        scale: factor of the width where it is None.
    """
    if width is None:
        width = max(2.0, scale * side / WIDTH_SHARE) if scene.spacing_mm is None else scale * WIDTH_MM
    return min(max(round(width / (scene.spacing_mm or 1.0)), 1), side)


def positive_width(width: float | None) -> float | None:
    """The width that a setting asks for.

    Raises:
        ValueError: it is not above 0.
    """
    if width is not None and width <= 0:
        raise ValueError(f"width must be above 0, found {width}")
    return width


def local_means(x: Tensor, side: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean over the neighbourhood of every place, as far as it lies in the image and under the mask.

    Args:
        x: `(B, C, *S)`; what lies outside the mask does not count.
        side: of a neighbourhood, which lies evenly around its place: of an even side, the outermost places count half.
        mask: bool `(B, 1, *S)`; everything counts when None.

    Returns:
        Means `(B, C, *S)`, and the share of the neighbourhood that counts `(B, 1, *S)`: what leaves the image does not.
    """
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    inside = torch.ones_like(x[:, :1]) if mask is None else mask.to(x.dtype)

    def around(values: Tensor) -> Tensor:
        found: Tensor = pool(values, side, stride=1, padding=side // 2)
        return found if side % 2 else pool(found, 2, stride=1)

    share = around(inside)
    return around(x * inside) / share.clamp(min=_TINY), share


def local_deviation(images: Tensor, side: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Standard deviation within the neighbourhood of every place, root mean square over the channels; see `local_means`.

    Returns:
        Deviations `(B, 1, *S)`, and the share of the neighbourhood that counts `(B, 1, *S)`.
    """
    mean, share = local_means(images, side, mask)
    variance = local_means(images.square(), side, mask)[0] - mean.square()
    return variance.clamp(min=0).mean(1, keepdim=True).sqrt(), share


def rated_neighbourhoods(difference: Tensor, side: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The length of the mean difference around every place, and the largest.

    Differences of opposite sign cancel within a neighbourhood; over the channels the mean's root mean square is taken, so that a
    foreign colour counts whole. For the largest, more than half of a neighbourhood has to count, or as much as there is.

    Args:
        difference: `(B, C, *S)`.
        side: of a neighbourhood.
        mask: bool `(B, 1, *S)`; everything counts when None.

    Returns:
        The largest `(B,)`, and the lengths `(B, 1, *S)`, 0 outside the mask.
    """
    mean, share = local_means(difference, side, mask)
    length = mean.square().mean(1, keepdim=True).sqrt()
    return worst(length.flatten(1), share.flatten(1)), length if mask is None else length * mask


def as_scores(values: Tensor) -> Scores:
    """Scores `(B,)` as detectors give them."""
    return values.double().cpu().numpy()
