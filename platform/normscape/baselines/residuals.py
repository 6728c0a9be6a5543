"""Neighbourhoods of every place of an image, and the worst of them: what a score and a map are made of."""

from __future__ import annotations

from torch import Tensor

from normscape.baselines import Scores
from normscape.datasets.anomalies import Scene
from normscape.losses.masked import local_means, worst

WIDTH_MM = 8.0
"""Side of a neighbourhood, unless a setting says otherwise: the least diameter of a standard blot."""
WIDTH_SHARE = 8
"""Likewise where there is no scale: this fraction of the image's side."""


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
