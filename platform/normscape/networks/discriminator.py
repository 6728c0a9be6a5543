"""StyleGAN2 residual discriminator with minibatch deviation (Karras et al. 2020)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from normscape.config import Config
from normscape.networks.layers import EqualizedConv, EqualizedLinear, memory_format, minibatch_deviation


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1x1 skip, down-sampling by two."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        # the sum of both paths is divided by sqrt(2): folded into each path's last gain
        self.first = EqualizedConv(dims, inputs, inputs, 3)
        self.second = EqualizedConv(dims, inputs, outputs, 3, down=True, gain=1 / math.sqrt(2))
        self.skip = EqualizedConv(dims, inputs, outputs, 1, down=True, bias=False, activate=False, gain=1 / math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs, *S)` to `(B, outputs, *(S / 2))`."""
        result: Tensor = self.second(self.first(x)) + self.skip(x)
        return result


class ResidualTrunk(nn.Module):
    """Images to feature maps, from the image's resolution down to 4.

    Args:
        channels: channels from the image resolution down to 4.
        dims: spatial dimensions.
        image_channels: channels of the image.
    """

    def __init__(self, *, channels: tuple[int, ...], dims: int, image_channels: int) -> None:
        super().__init__()
        self.dims = dims
        self.from_image = EqualizedConv(dims, image_channels, channels[0], 1)
        self.blocks = nn.ModuleList(ResidualBlock(dims, a, b) for a, b in itertools.pairwise(channels))

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps after each resolution, from the image's down to 4; independent of the rest of the batch."""
        x = self.from_image(images.contiguous(memory_format=memory_format(self.dims)))
        maps = [x]
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class Discriminator(ResidualTrunk):
    """Images to real/fake logits.

    Args:
        channels: channels from the image resolution down to 4.
        dims: spatial dimensions.
        image_channels: channels of the image.
        deviation_group: group size of the minibatch deviation.
    """

    def __init__(self, *, channels: tuple[int, ...], dims: int, image_channels: int, deviation_group: int = 4) -> None:
        super().__init__(channels=channels, dims=dims, image_channels=image_channels)
        self.deviation_group = deviation_group
        last = channels[-1]
        self.conv = EqualizedConv(dims, last + 1, last, 3)
        self.hidden = EqualizedLinear(last * 4**dims, last, activate=True)
        self.logit = EqualizedLinear(last, 1)

    @classmethod
    def from_config(cls, config: Config) -> Discriminator:
        """The discriminator that a configuration describes, with random weights."""
        return cls(
            channels=config.discriminator.channels,
            dims=config.dims,
            image_channels=config.image_channels,
            deviation_group=config.discriminator.deviation_group,
        )

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, *S)` to logits `(B,)`; B must be a multiple of the deviation group."""
        x = self.features(images)[-1]
        x = self.conv(minibatch_deviation(x, self.deviation_group))
        logits: Tensor = self.logit(self.hidden(torch.flatten(x.contiguous(), 1)))
        return logits.squeeze(1)
