"""Generator and discriminator in two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normscape.config import Config
from normscape.networks.discriminator import Discriminator
from normscape.networks.generator import Generator, NoiseSource, draw_latents


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes(dims: int, toy_config: Callable[..., Config]) -> None:
    """Images have the configured shape; there is one logit an image."""
    config = toy_config(dims=dims)
    generator, discriminator = Generator.from_config(config), Discriminator.from_config(config)
    images = generator(draw_latents(4, generator, torch.Generator().manual_seed(0)))
    assert images.shape == (4, 3, *(8,) * dims)
    assert discriminator(images).shape == (4,)
    assert [tuple(f.shape[2:]) for f in discriminator.features(images)] == [(8,) * dims, (4,) * dims]


def test_an_image_does_not_depend_on_its_batch(toy_config: Callable[..., Config]) -> None:
    """A style alone and among others gives the same image (fixed noise)."""
    generator = Generator.from_config(toy_config())
    styles = generator.mapping(torch.randn(5, generator.latent_dim))
    together = generator.synthesize(styles)
    alone = torch.cat([generator.synthesize(w[None]) for w in styles])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_one_style_a_resolution(toy_config: Callable[..., Config]) -> None:
    """The same style at every resolution equals a single one; a change at the last resolution changes the image."""
    generator = Generator.from_config(toy_config())
    w = generator.mapping(torch.randn(2, generator.latent_dim))
    expanded = w[:, None].repeat(1, len(generator.resolutions), 1)
    torch.testing.assert_close(generator.synthesize(expanded), generator.synthesize(w))
    expanded[:, -1] += 1
    assert not torch.allclose(generator.synthesize(expanded), generator.synthesize(w))


def test_sub_spaces_are_mapped_apart(toy_config: Callable[..., Config]) -> None:
    """Changing one sub-space of z changes that sub-space of w alone."""
    generator = Generator.from_config(toy_config())
    z = torch.randn(3, generator.latent_dim)
    changed = z.clone()
    changed[:, generator.subspace_slice("angle")] += 1
    difference = (generator.mapping(z) - generator.mapping(changed)).abs().amax(0)
    part = generator.subspace_slice("angle")
    assert difference[part].min() > 0
    assert difference[: part.start].max() == 0
    assert difference[part.stop :].max() == 0
    with pytest.raises(KeyError):
        generator.subspace_slice("age")


def test_noise_needs_a_source(toy_config: Callable[..., Config]) -> None:
    """With a noise source two calls differ, from the same seed they agree, and without one the noise image is fixed."""
    generator = Generator.from_config(toy_config())
    for block in generator.blocks:
        torch.nn.init.ones_(block.conv.noise_strength)
    z = torch.randn(2, generator.latent_dim)
    first, second = (generator(z, NoiseSource(torch.Generator().manual_seed(seed))) for seed in (0, 1))
    assert not torch.allclose(first, second)
    assert torch.equal(first, generator(z, NoiseSource(torch.Generator().manual_seed(0))))
    assert torch.equal(generator(z), generator(z))
