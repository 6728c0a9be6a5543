"""A learned volume over the places that patches come from; each patch sees the window of it that it covers.

Beyond the thesis, whose generator knows a place through its style alone and would have to draw a whole brain from 128 numbers.
It joins the coordinates that patch-wise generators are conditioned on (Lin et al. 2019, COCO-GAN) with learned atlases that
depend on age (Dalca et al. 2019): the volume's channels become an image by a convolution that the style modulates, so that age
and person change what stands at a place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normscape.networks.layers import ModulatedConv

INITIAL_SCALE = 0.1
"""Standard deviation of the volume's first values."""


class LearnedAtlas(nn.Module):
    """Three-dimensional; places are x, y, z, array axes z, y, x.

    Args:
        channels: of the volume.
        style_dim: width of a style.
        image_channels: of the image.
        side: of a patch, in voxels.
        spacing: of voxels, in the unit of the places.
        low, high: least and largest coordinate of a patch's middle, along every axis.
    """

    def __init__(
        self, channels: int, style_dim: int, image_channels: int, *, side: int, spacing: float, low: float, high: float
    ) -> None:
        super().__init__()
        self.side = side
        self.steps = (high - low) / spacing  # from one end to the other, in voxels
        nodes = math.ceil(self.steps) + side + 1
        self.volume = nn.Parameter(torch.randn(channels, nodes, nodes, nodes) * INITIAL_SCALE)
        self.to_image = ModulatedConv(3, channels, image_channels, 1, style_dim, demodulate=False)

    def forward(self, place: Tensor, w: Tensor) -> Tensor:
        """Middles of patches `(B, 3)`, from -1 (low) to 1 (high), and styles `(B, style_dim)` to images `(B, C, *S)`."""
        image: Tensor = self.to_image(self.window(place, self.volume), w)
        return image

    def window(self, place: Tensor, volume: Tensor) -> Tensor:
        """A volume `(channels, Z, Y, X)` of this size at the voxels of patches, `(B, channels, *S)`, interpolated.

        A place beyond the range counts as its end. Everything is a gather and three blends, so that gradients of any order reach
        volume and place.
        """
        first = (place.clamp(-1, 1).flip(1) + 1) / 2 * self.steps
        corner = first.detach().floor().clamp(0, math.ceil(self.steps))
        share = first - corner
        steps = torch.arange(self.side + 1, device=place.device)
        nodes = volume.shape[1]
        z, y, x = ((corner[:, axis, None].long() + steps).clamp(max=nodes - 1) for axis in range(3))
        index = (z[:, :, None, None] * nodes + y[:, None, :, None]) * nodes + x[:, None, None, :]
        block = volume.flatten(1)[:, index].transpose(0, 1)
        for axis in range(3):
            part = share[:, axis].view(-1, 1, 1, 1, 1)
            near, far = block.narrow(axis + 2, 0, self.side), block.narrow(axis + 2, 1, self.side)
            block = near + part * (far - near)
        return block
