"""Small networks of the baselines, made of MONAI's, for images in 2D and 3D. Sides are powers of two, at least 8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.nets.generator import Generator
from monai.networks.nets.regressor import Regressor
from monai.networks.nets.unet import UNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from normscape.networks.values import HALF_WAVES

ACTIVATION = ("leakyrelu", {"negative_slope": 0.2})
NORM = "batch"
"""Running statistics keep intensities, which instance and group norms divide out, and do not depend on the batch once frozen."""
VALUE_FEATURES = 16
"""Features that a network sees of known values."""
_FOLD = 2
"""Pixels of a side that become channels before a U-Net."""


def stage_widths(side: int, width: int) -> tuple[int, ...]:
    """Channels of the stages that each halve a side, down to 2: width, twice and then four times that."""
    return tuple(width * min(2**i, 4) for i in range(int(math.log2(side)) - 1))


def encoder(shape: Sequence[int], outputs: int, *, width: int) -> nn.Module:
    """A network from images `(B, *shape)`, shape (C, *S), to vectors `(B, outputs)`: strided convolutions, one dense layer."""
    channels = stage_widths(shape[-1], width)
    return Regressor(
        tuple(shape), (outputs,), channels, (2,) * len(channels), num_res_units=0, act=ACTIVATION, norm=NORM
    )  # fmt: skip


def decoder(shape: Sequence[int], inputs: int, *, width: int) -> nn.Module:
    """A network from vectors `(B, inputs)` to images `(B, *shape)`: one dense layer, transposed convolutions."""
    channels = stage_widths(shape[-1], width)[::-1]
    start = (channels[0], *(side // 2 ** len(channels) for side in shape[1:]))
    return Generator(
        (inputs,), start, (*channels[1:], shape[0]), (2,) * len(channels), num_res_units=0, act=ACTIVATION, norm=NORM
    )  # fmt: skip


class ValueFeatures(nn.Module):
    """Known values to features: half waves over their ranges (Tancik et al. 2020) and one hidden layer.

    Args:
        values: D; no features come of none.
        hidden: width of the hidden layer.
    """

    def __init__(self, values: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.width = VALUE_FEATURES if values else 0
        seen = values * (1 + 2 * HALF_WAVES)
        self.net = nn.Sequential(nn.Linear(seen, hidden), nn.SiLU(), nn.Linear(hidden, self.width)) if values else None

    def forward(self, values: Tensor) -> Tensor:
        """`(B, D)`, 0 and 1 at the ends of the ranges, to `(B, width)`."""
        if self.net is None:
            return values
        waves = values[..., None] * (math.pi * torch.arange(1, HALF_WAVES + 1, device=values.device))
        features: Tensor = self.net(torch.cat([2 * values[..., None] - 1, waves.sin(), waves.cos()], dim=2).flatten(1))
        return features


def with_features(images: Tensor, features: Tensor) -> Tensor:
    """Images `(B, C, *S)` and features `(B, F)`, the same at every place: `(B, C + F, *S)`."""
    if not features.shape[1]:
        return images
    wide = features.view(*features.shape, *(1,) * (images.ndim - 2)).expand(-1, -1, *images.shape[2:])
    return torch.cat([images, wide], dim=1)


class Bottleneck(nn.Module):
    """An encoder to a latent vector and a decoder, which both see the known values.

    Args:
        shape: (C, *S).
        latent: width of what the decoder sees of the image.
        outputs: width of what the encoder says of it.
        width: channels of the finest stage.
        values: D, number of known values.
    """

    def __init__(self, shape: Sequence[int], *, latent: int, outputs: int, width: int, values: int) -> None:
        super().__init__()
        self.known = ValueFeatures(values)
        self.encoder = encoder((shape[0] + self.known.width, *shape[1:]), outputs, width=width)
        self.decoder = decoder(shape, latent + self.known.width, width=width)

    def encode(self, images: Tensor, values: Tensor) -> Tensor:
        """`(B, C, *S)` and `(B, D)` to `(B, outputs)`."""
        encoded: Tensor = self.encoder(with_features(images, self.known(values)))
        return encoded

    def decode(self, latents: Tensor, values: Tensor) -> Tensor:
        """`(B, latent)` and `(B, D)` to images `(B, C, *S)`."""
        images: Tensor = self.decoder(torch.cat([latents, self.known(values)], dim=1))
        return images


class FoldedUNet(nn.Module):
    """MONAI's residual U-Net at half the resolution: the pixels of every 2 x 2 (x 2) block are channels, before and after.

    No detail is lost, and the finest convolutions, which cost most, see 4 (8) times fewer places.

    Args:
        dims: 2 or 3.
        inputs, outputs: channels of the images.
        width: channels of the finest stage.
        values: D, number of known values.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, *, width: int, values: int = 0) -> None:
        super().__init__()
        self.dims, block = dims, _FOLD**dims
        self.known = ValueFeatures(values)
        self.net = UNet(
            dims, inputs * block + self.known.width, outputs * block,
            channels=(width, 2 * width, 4 * width, 4 * width), strides=(1, 2, 2), num_res_units=2, act=ACTIVATION, norm=NORM,
        )  # fmt: skip

    def forward(self, images: Tensor, values: Tensor) -> Tensor:
        """`(B, inputs, *S)` and `(B, D)` to `(B, outputs, *S)`."""
        return unfold_blocks(self.net(with_features(fold_blocks(images), self.known(values))))


def fold_blocks(images: Tensor) -> Tensor:
    """`(B, C, *S)` to `(B, C * 2^dims, *(S / 2))`: pixels of a block become channels."""
    folded: Tensor = pixelunshuffle(images, images.ndim - 2, _FOLD)
    return folded


def unfold_blocks(images: Tensor) -> Tensor:
    """Undoes `fold_blocks`."""
    unfolded: Tensor = pixelshuffle(images, images.ndim - 2, _FOLD)
    return unfolded
