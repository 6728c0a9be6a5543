"""A generated brain is the blend of its patches, each at its own values, all of one identity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from normscape.config import Config
from normscape.inversion.brains import generate_brain
from normscape.networks.controller import Controller
from normscape.networks.generator import Generator

SHAPE = (20, 16, 8)
CENTRES = torch.tensor([[4, 4, 4], [8, 6, 4], [16, 12, 4]])


@pytest.fixture
def parts(toy_brain_config: Callable[..., Config]) -> tuple[Generator, dict[str, Controller], dict[str, Tensor]]:
    """Generator, controllers, and the values of three patches."""
    config = toy_brain_config()
    torch.manual_seed(0)
    generator = Generator.from_config(config)
    controllers = {a.name: Controller.from_config(a, config) for a in config.value_attributes}
    return generator, controllers, {"age": torch.full((3, 1), 30.0), "position": torch.randn(3, 3) * 40}


def test_patches_share_their_identity_and_follow_their_values(
    parts: tuple[Generator, dict[str, Controller], dict[str, Tensor]],
) -> None:
    """A patch that no other overlaps is what the generator makes of the identity, the age and the position."""
    generator, controllers, values = parts
    z = torch.randn(generator.latent_dim)
    brain = generate_brain(generator, controllers, z, values, CENTRES, SHAPE)
    with torch.no_grad():
        style = generator.mapping(z[None])
        for name, controller in controllers.items():
            style[:, generator.subspace_slice(name)] = controller(values[name][2:])
        expected = generator.synthesize(style)[0, 0]
    torch.testing.assert_close(brain.result()[12:20, 8:16, 0:8], expected, atol=1e-5, rtol=1e-4)
    assert not bool(brain.covered[12:, :8].any())
    older = generate_brain(generator, controllers, z, values | {"age": values["age"] + 40}, CENTRES, SHAPE)
    other = generate_brain(generator, controllers, torch.randn(generator.latent_dim), values, CENTRES, SHAPE)
    for changed in (older, other):
        assert float((changed.result() - brain.result()).abs().mean()) > 1e-3


def test_the_batch_size_does_not_matter(parts: tuple[Generator, dict[str, Controller], dict[str, Tensor]]) -> None:
    """One patch at a time gives the same brain."""
    generator, controllers, values = parts
    z = torch.randn(generator.latent_dim)
    whole, single = (generate_brain(generator, controllers, z, values, CENTRES, SHAPE, batch_size=n) for n in (3, 1))
    torch.testing.assert_close(whole.result(), single.result(), atol=1e-5, rtol=1e-4)


def test_truncation_draws_an_identity_towards_the_neutral_one(
    parts: tuple[Generator, dict[str, Controller], dict[str, Tensor]],
) -> None:
    """At 0 every identity gives the brain of latents of zero; half way lies nearer to it than at 1; age and place stay."""
    generator, controllers, values = parts
    one, other = torch.randn(2, generator.latent_dim)

    def brain(z: Tensor, truncation: float) -> Tensor:
        return generate_brain(generator, controllers, z, values, CENTRES, SHAPE, truncation=truncation).result()

    neutral = brain(torch.zeros_like(one), 1.0)
    torch.testing.assert_close(brain(one, 0.0), neutral, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(brain(other, 0.0), neutral, atol=1e-5, rtol=1e-4)
    assert 0 < (brain(one, 0.5) - neutral).abs().mean() < (brain(one, 1.0) - neutral).abs().mean()
