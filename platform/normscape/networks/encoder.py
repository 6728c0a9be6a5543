"""Encoder: an image and its known conditions to latents that the generator rebuilds it from.

It goes beyond the thesis, which inverts by optimisation alone. Trained together with the generator, it ties every real image to
a place in the latent space, as in in-domain inversion (Zhu et al. 2020) and adversarial autoencoders (Pidhorskyi et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from normscape.config import AttributeConfig, Config
from normscape.networks.discriminator import ResidualTrunk
from normscape.networks.layers import EqualizedLinear
from normscape.networks.values import ValueEmbedding


class Encoder(ResidualTrunk):
    """Latents of a value attribute come from its known value alone, the other sub-spaces' from the image.

    So a sub-space with a controller cannot hold anything but its attribute, and the others need not hold it.

    Args:
        attributes: in the order of their sub-spaces.
        other_dim: width of `other`.
        channels: channels from the image resolution down to 4.
        hidden: width of the value embeddings.
        dims: spatial dimensions.
        image_channels: channels of the image.
    """

    def __init__(
        self,
        *,
        attributes: Sequence[AttributeConfig],
        other_dim: int,
        channels: tuple[int, ...],
        hidden: int,
        dims: int,
        image_channels: int,
    ) -> None:
        super().__init__(channels=channels, dims=dims, image_channels=image_channels)
        self.order = (*(a.name for a in attributes), "other")
        seen = {a.name: a.latent_dim for a in attributes if a.kind == "embedding"} | {"other": other_dim}
        self.seen = tuple(seen)
        self.widths = tuple(seen.values())
        self.latents = EqualizedLinear(channels[-1] * 4**dims, sum(self.widths))
        self.values = nn.ModuleDict({a.name: ValueEmbedding(a, hidden=hidden) for a in attributes if a.kind == "value"})

    @classmethod
    def from_config(cls, config: Config) -> Encoder:
        """The encoder that a configuration describes, with random weights."""
        return cls(
            attributes=config.attributes,
            other_dim=config.other_dim,
            channels=config.encoder.channels or config.discriminator.channels,
            hidden=config.encoder.hidden,
            dims=config.dims,
            image_channels=config.image_channels,
        )

    def forward(self, images: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Images `(B, C, *S)` in [-1, 1] and value attributes' known values `(B, D)` in their unit to latents z `(B, W)`."""
        flat = torch.flatten(self.features(images)[-1].contiguous(), 1)
        parts = dict(zip(self.seen, self.latents(flat).split(self.widths, dim=1), strict=True))
        parts |= {name: embedding(values[name]) for name, embedding in self.values.items()}
        return torch.cat([parts[name] for name in self.order], dim=1)
