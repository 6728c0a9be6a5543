"""StyleGAN2 generator with a factorised latent space (thesis II.A.1; Karras et al. 2020; Shoshan et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscape.config import AttributeConfig, Config
from normscape.networks.layers import SLOPE, SQRT2, EqualizedLinear, ModulatedConv, memory_format, spatial, upsample
from normscape.networks.learned_atlas import LearnedAtlas


class SubspaceMapping(nn.Module):
    """One mapping stack a sub-space: z^k -> w^k (thesis II.A.1).

    Args:
        subspaces: name and width of each sub-space, in order.
        layers: layers of each stack.
        lr_multiplier: learning-rate multiplier of the layers.
    """

    def __init__(self, subspaces: Mapping[str, int], *, layers: int, lr_multiplier: float) -> None:
        super().__init__()
        self.widths = tuple(subspaces.values())
        self.stacks = nn.ModuleDict(
            {
                name: nn.Sequential(
                    *(EqualizedLinear(width, width, lr_multiplier=lr_multiplier, activate=True) for _ in range(layers))
                )
                for name, width in subspaces.items()
            }
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents `(B, W)` to styles `(B, W)`, each sub-space on its own."""
        parts = z.split(self.widths, dim=1)
        return torch.cat([self.stack(name, part) for name, part in zip(self.stacks, parts, strict=True)], dim=1)

    def stack(self, name: str, z: Tensor) -> Tensor:
        """Map one sub-space's latents `(B, d)` to its styles `(B, d)`."""
        normalized = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        result: Tensor = self.stacks[name](normalized)
        return result


class NoiseSource:
    """Draws the noise inputs of a batch, or of some rows of a larger one, whose other rows are drawn elsewhere.

    Args:
        random: on the device of the network.
        total: rows of the whole batch; as many as asked for when empty.
        rows: which of them are wanted.
    """

    def __init__(self, random: torch.Generator, total: int | None = None, rows: Tensor | None = None) -> None:
        self.random, self.total, self.rows = random, total, rows

    def draw(self, count: int, like: Tensor) -> Tensor:
        """Standard normal noise `(count, *like.shape[1:])`."""
        noise = torch.randn(
            self.total or count, *like.shape[1:], generator=self.random, device=self.random.device, dtype=like.dtype
        )
        return noise if self.rows is None else noise[self.rows]


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias, leaky ReLU."""

    def __init__(self, dims: int, inputs: int, outputs: int, style_dim: int, *, side: int, up: bool, noise: bool) -> None:
        super().__init__()
        self.dims = dims
        self.conv = ModulatedConv(dims, inputs, outputs, 3, style_dim, up=up, gain=SQRT2)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(())) if noise else None
        self.fixed_noise: Tensor
        if noise:
            self.register_buffer("fixed_noise", torch.randn(1, 1, *(side,) * dims))

    def forward(self, x: Tensor, w: Tensor, noise: NoiseSource | None) -> Tensor:
        """`(B, inputs, *S)` and `(B, style_dim)` to `(B, outputs, *S')`; without a noise source the fixed noise image is used."""
        x = self.conv(x, w)
        shift = spatial(self.bias * SQRT2, self.dims)
        if self.noise_strength is not None:
            image = self.fixed_noise
            if noise is not None:
                image = noise.draw(len(x), image)
            shift = shift + image * (self.noise_strength * SQRT2)
        return F.leaky_relu_(x + shift.to(x.dtype), SLOPE)


class ResolutionBlock(nn.Module):
    """The layers of one resolution: convolutions and the image they add (skip generator)."""

    def __init__(
        self, dims: int, inputs: int | None, outputs: int, style_dim: int, image_channels: int, *, side: int, noise: bool
    ) -> None:
        super().__init__()
        self.up = StyledConv(dims, inputs, outputs, style_dim, side=side, up=True, noise=noise) if inputs is not None else None
        self.conv = StyledConv(dims, outputs, outputs, style_dim, side=side, up=False, noise=noise)
        self.to_image = ModulatedConv(dims, outputs, image_channels, 1, style_dim, demodulate=False)
        self.image_bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor, noise: NoiseSource | None) -> tuple[Tensor, Tensor]:
        """Features and image of the resolution below to those of this one."""
        if self.up is not None:
            x = self.up(x, w, noise)
        x = self.conv(x, w, noise)
        added = self.to_image(x, w) + spatial(self.image_bias, x.ndim - 2)
        return x, added if image is None else upsample(image) + added


class Generator(nn.Module):
    """Mapping stacks and synthesis network.

    Args:
        subspaces: name and width of each sub-space of z and w, in order; the last one is `other`.
        channels: channels from resolution 4 upwards.
        dims: spatial dimensions.
        image_channels: channels of the image.
        mapping_layers, mapping_lr_multiplier: see :class:`SubspaceMapping`.
        noise: per-pixel noise inputs.
        atlas: learned volume whose window is added to a patch.
        position: the attribute that says which window; the first coordinates of its styles are the place from -1 to 1. Without
            it all images see the same window.
    """

    def __init__(
        self,
        *,
        subspaces: Mapping[str, int],
        channels: tuple[int, ...],
        dims: int,
        image_channels: int,
        mapping_layers: int = 8,
        mapping_lr_multiplier: float = 0.01,
        noise: bool = True,
        atlas: LearnedAtlas | None = None,
        position: AttributeConfig | None = None,
    ) -> None:
        super().__init__()
        self.subspaces = dict(subspaces)
        self.dims = dims
        self.latent_dim = sum(subspaces.values())
        self.resolutions = tuple(4 * 2**i for i in range(len(channels)))
        self.mapping = SubspaceMapping(subspaces, layers=mapping_layers, lr_multiplier=mapping_lr_multiplier)
        self.constant = nn.Parameter(torch.randn(1, channels[0], *(4,) * dims))
        self.blocks = nn.ModuleList(
            ResolutionBlock(dims, inputs, outputs, self.latent_dim, image_channels, side=side, noise=noise)
            for inputs, outputs, side in zip((None, *channels[:-1]), channels, self.resolutions, strict=True)
        )
        self.atlas, self.position = atlas, position

    @classmethod
    def from_config(cls, config: Config) -> Generator:
        """The generator that a configuration describes, with random weights."""
        position, atlas = config.position, None
        if config.generator.atlas_channels and (position is not None or config.whole_scans):
            low, high = (0.0, 0.0) if position is None else (position.value_min, position.value_max)
            atlas = LearnedAtlas(
                config.generator.atlas_channels,
                sum(config.subspaces.values()),
                config.image_channels,
                side=config.image_size,
                spacing=config.data.spacing_mm,
                low=low,
                high=high,
            )
        return cls(
            subspaces=config.subspaces,
            channels=config.generator.channels,
            dims=config.dims,
            image_channels=config.image_channels,
            mapping_layers=config.generator.mapping_layers,
            mapping_lr_multiplier=config.generator.mapping_lr_multiplier,
            noise=config.generator.noise,
            atlas=atlas,
            position=position if atlas is not None else None,
        )

    def subspace_slice(self, name: str) -> slice:
        """Where a sub-space lies in z and in w."""
        start = 0
        for key, width in self.subspaces.items():
            if key == name:
                return slice(start, start + width)
            start += width
        raise KeyError(name)

    @property
    def place_slice(self) -> slice | None:
        """Where a style holds the place of its patch; None without an atlas, and where all images lie at the same place."""
        if self.position is None:
            return None
        start = self.subspace_slice(self.position.name).start
        return slice(start, start + self.position.output_dim)

    def synthesize(self, styles: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Styles to images.

        Args:
            styles: `(B, W)`, or `(B, R, W)` with one style a resolution.
            noise: source of the noise inputs; the fixed noise images when empty.

        Returns:
            `(B, C, *S)`, about [-1, 1].
        """
        if styles.ndim == 2:
            styles = styles[:, None].expand(-1, len(self.blocks), -1)
        x = self.constant.expand(len(styles), *self.constant.shape[1:]).contiguous(memory_format=memory_format(self.dims))
        image = None
        for block, w in zip(self.blocks, styles.unbind(1), strict=True):
            x, image = block(x, image, w, noise)
        assert image is not None
        if self.atlas is not None:
            where = self.place_slice
            place = styles.new_zeros(len(styles), 3) if where is None else styles[:, -1, where]
            image = image + self.atlas(place, styles[:, -1])
        return image

    def forward(self, z: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Latents `(B, W)` to images `(B, C, *S)`."""
        return self.synthesize(self.mapping(z), noise)


def draw_latents(count: int, generator: Generator, random: torch.Generator) -> Tensor:
    """Independent standard normal latents `(count, W)` on the generator's device, drawn from `random`."""
    z = torch.randn(count, generator.latent_dim, generator=random, device=random.device)
    return z.to(generator.constant.device)
