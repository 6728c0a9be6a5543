"""The encoder: which sub-space hears what."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normscape.config import Config
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator


@pytest.mark.parametrize("dims", [2, 3])
def test_controlled_subspaces_hear_the_value_and_the_others_the_image(dims: int, toy_config: Callable[..., Config]) -> None:
    """Another angle changes the angle's latents only; another image changes all latents but the angle's."""
    torch.manual_seed(0)
    config = toy_config(dims=dims)
    encoder, generator = Encoder.from_config(config), Generator.from_config(config)
    images = torch.rand(3, 3, *(8,) * dims) * 2 - 1
    value = torch.tensor([[0.0], [30.0], [90.0]])
    z = encoder(images, {"angle": value})
    assert z.shape == (3, generator.latent_dim)
    angle = generator.subspace_slice("angle")
    mask = torch.zeros(generator.latent_dim, dtype=torch.bool)
    mask[angle] = True
    turned, other = encoder(images, {"angle": value + 10}), encoder(images.flip(0) + 0.1, {"angle": value})
    assert torch.equal(z[:, ~mask], turned[:, ~mask])
    assert (z[:, mask] != turned[:, mask]).any(1).all()
    assert torch.equal(z[:, mask], other[:, mask])
    assert (z[:, ~mask] != other[:, ~mask]).any(1).all()


def test_an_image_is_encoded_the_same_alone_and_in_a_batch(toy_config: Callable[..., Config]) -> None:
    """No statistic of the batch enters."""
    torch.manual_seed(0)
    encoder = Encoder.from_config(toy_config())
    images, value = torch.rand(4, 3, 8, 8), torch.rand(4, 1) * 90
    alone = torch.cat([encoder(images[i : i + 1], {"angle": value[i : i + 1]}) for i in range(4)])
    torch.testing.assert_close(encoder(images, {"angle": value}), alone)
