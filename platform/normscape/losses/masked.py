"""Means and maxima over the places that count, one value a sample.

A mask says which places of an image count: the brain. What lies outside is noise that nothing can rebuild (thesis III.B.2), and
half of a patch may be that. A sample whose mask is empty has no difference: every value here is 0 for it, never NaN. Without a
mask every place counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

INSIDE = 0.5
"""A coarse place or a neighbourhood counts as brain above this share."""
QUIET = 0.15
"""Standard deviation of a texture, in units of the images in [-1, 1], that halves the weight of a difference in it."""
_TINY = 1e-6


def as_mask(mask: Tensor | None, device: torch.device) -> Tensor | None:
    """A mask `(B, 1, *S)` of any type as booleans on the device; float masks are true above one half."""
    return None if mask is None else mask.to(device) > INSIDE


def within(inside: Tensor, outside: Tensor, mask: Tensor | None) -> Tensor:
    """The first images `(B, C, *S)` where the mask `(B, 1, *S)` is true and the second ones elsewhere."""
    return inside if mask is None else torch.where(mask, inside, outside)


def weighted_mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Mean of `(B, P)` with weights `(B, P)` of at least 0, `(B,)`."""
    return x.mean(1) if weight is None else (x * weight).sum(1) / weight.sum(1).clamp(min=_TINY)


def worst(x: Tensor, weight: Tensor | None) -> Tensor:
    """Largest of `(B, P)`, none negative, where the weight is above one half, or else among the heaviest places, `(B,)`."""
    if weight is None:
        return x.amax(1)
    heaviest = weight.amax(1, keepdim=True)
    counts = (weight > 0) & (weight >= torch.where(heaviest > INSIDE, INSIDE + _TINY, heaviest))
    return (x * counts).amax(1)


def worst_share(x: Tensor, mask: Tensor | None, percent: int) -> Tensor:
    """Mean of the largest values of `(B, P)`: this percentage of the places under the mask `(B, P)`, at least one, `(B,)`."""
    if mask is None:
        return x.topk(max(1, x.shape[1] * percent // 100), dim=1).values.mean(1)
    count = (mask.sum(1) * percent // 100).clamp(min=1)
    largest = (x * mask).topk(int(count.max()), dim=1).values
    kept = torch.arange(largest.shape[1], device=x.device) < count[:, None]
    return (largest * kept).sum(1) / count


def resampled(mask: Tensor | None, sides: Sequence[int]) -> Tensor | None:
    """Share of brain in each place of a coarser or finer grid: `(B, 1, *S)` to `(B, places)`, area averages."""
    if mask is None:
        return None
    shares = mask.float()
    if mask.ndim == 4:
        return F.adaptive_avg_pool2d(shares, (sides[0], sides[1])).flatten(1)
    return F.adaptive_avg_pool3d(shares, (sides[0], sides[1], sides[2])).flatten(1)


def neighbourhoods(
    difference: Tensor, side: int, mask: Tensor | None = None, *, texture: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Mean over every neighbourhood of this side: its length over the channels (RMS), so that a foreign colour counts whole.

    Args:
        difference: `(B, C, *S)`, zero outside of the mask.
        side: of a neighbourhood.
        mask: `(B, 1, *S)`.
        texture: `(B, C, *S)`: means are divided by 1 + s / QUIET, s its standard deviation in the neighbourhood (RMS over the
            channels).

    Returns:
        Means over what lies under the mask, and the share of it, `(B, places)` each.
    """
    pool = F.avg_pool2d if difference.ndim == 4 else F.avg_pool3d
    share = None if mask is None else pool(mask.float(), kernel_size=side, stride=1)

    def mean(x: Tensor) -> Tensor:
        pooled = pool(x, kernel_size=side, stride=1)
        return pooled if share is None else pooled / share.clamp(min=_TINY)

    found = mean(difference).square().mean(1).sqrt()
    if texture is not None:
        seen = texture if mask is None else texture * mask
        variance = (mean(seen.square()) - mean(seen).square()).clamp(min=0)
        found = found / (1 + variance.mean(1).sqrt() / QUIET)
    return found.flatten(1), None if share is None else share.flatten(1)


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
        dims = x.ndim - 2
        for axis in range(dims):  # axis by axis: 3 * side additions a place instead of side^3
            kernel, padding = [1] * dims, [0] * dims
            kernel[axis], padding[axis] = side, side // 2
            values = pool(values, kernel, stride=1, padding=padding)
        return values if side % 2 else pool(values, 2, stride=1)

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


def worst_sides(x: Tensor, side: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """How far below and how far above 0 the mean over the worst neighbourhood lies, `(B,)` each, at least 0.

    Args:
        x: `(B, 1, *S)`, 0 outside of the mask.
        side: of a neighbourhood, in places.
        mask: what counts, `(B, 1, *S)`; everything when empty.
    """
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    mean = pool(x, side, stride=1).flatten(1)
    share = None if mask is None else pool(mask.float(), side, stride=1).flatten(1)
    if share is not None:
        mean = mean / share.clamp(min=_TINY)
    return worst((-mean).clamp(min=0), share), worst(mean.clamp(min=0), share)
