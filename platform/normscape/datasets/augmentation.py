"""Augmentation for the auxiliary networks (thesis III.A.2): hue, pad and crop, Gaussian noise, clipping.

A whole batch at once, on the batch's device; every random number is drawn from one generator, on the generator's device.
Images are in [-1, 1] before and after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normscape.config import AugmentationConfig

BACKGROUND = 1.0
"""Intensity of the padding: white, the background of the chairs."""

_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]], dtype=torch.float64
)
_RGB = torch.linalg.inv(_YIQ)


def augment(images: Tensor, config: AugmentationConfig, *, hue: bool, generator: torch.Generator) -> Tensor:
    """Change each image at random.

    Args:
        images: float32 (B, C, *S) in [-1, 1], 2D or 3D.
        config: strengths.
        hue: rotate hues as well; needs C == 3 to have an effect.
        generator: source of all randomness; the same seed gives the same result on every device when it is a CPU generator.

    Returns:
        (B, C, *S) in [-1, 1].
    """
    if hue and images.shape[1] == 3 and config.hue_degrees > 0:
        images = rotate_hue(images, (2 * _uniform(images, generator) - 1) * config.hue_degrees)
    if config.pad_fraction > 0:
        images = pad_and_crop(images, config.pad_fraction, generator=generator)
    if config.noise_std_max > 0:
        std = _uniform(images, generator) * config.noise_std_max
        noise = torch.randn(images.shape, generator=generator, device=generator.device, dtype=images.dtype).to(images.device)
        images = images + noise * std.view(-1, *[1] * (images.ndim - 1))
    return images.clamp(-1.0, 1.0)


def rotate_hue(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn the colours of each image around the grey axis: luma stays, greys stay.

    A linear map, the rotation of the chroma plane of YIQ, not HSV's piecewise hue: it has no kinks, and colours that leave the
    range are left for the caller to clip.

    Args:
        images: (B, 3, *S) in [-1, 1].
        degrees: (B,) angle of each image.
    """
    angle = torch.deg2rad(degrees.to(torch.float64))
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    matrix = (_RGB.to(angle.device) @ turn @ _YIQ.to(angle.device)).to(images.dtype)
    return torch.bmm(matrix, images.flatten(2)).view_as(images)


def pad_and_crop(images: Tensor, pad_fraction: float, *, generator: torch.Generator) -> Tensor:
    """Pad each side with background and crop back at a random place: shifts by up to the padding, in whole pixels.

    Args:
        images: (B, C, *S).
        pad_fraction: padding as a share of the side; rounded to whole pixels.
        generator: source of the shifts.
    """
    batch, dims = len(images), images.ndim - 2
    background = torch.full((), BACKGROUND, device=images.device, dtype=images.dtype)
    for axis in range(dims):  # a shift is separable: one gather an axis
        side = images.shape[2 + axis]
        pad = round(pad_fraction * side)
        shift = torch.randint(-pad, pad + 1, (batch, 1), generator=generator, device=generator.device).to(images.device)
        source = torch.arange(side, device=images.device) + shift  # (B, side): where each pixel comes from
        shape = [batch, 1, *[1] * dims]
        shape[2 + axis] = side
        inside = ((source >= 0) & (source < side)).view(shape)
        index = source.clamp(0, side - 1).view(shape).expand_as(images)
        images = torch.where(inside, images.gather(2 + axis, index), background)
    return images


def _uniform(images: Tensor, generator: torch.Generator) -> Tensor:
    """One number in [0, 1) an image: (B,)."""
    return torch.rand(len(images), generator=generator, device=generator.device, dtype=images.dtype).to(images.device)
