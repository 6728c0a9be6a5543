"""Projection of brain patches: several conditions, one of them a vector, and what lies outside of the mask does not count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.inversion.projector import Projector
from normscape.inversion.style_space import WhitenedSubspace
from normscape.networks.auxiliary import AuxiliaryNetwork, freeze
from normscape.networks.controller import Controller
from normscape.networks.discriminator import Discriminator
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator


def make(config: Config) -> Projector:
    """A projector with random frozen networks."""
    torch.manual_seed(0)
    generator = Generator.from_config(config)
    freeze(generator)
    controllers = {a.name: Controller.from_config(a, config) for a in config.value_attributes}
    discriminator, encoder = Discriminator.from_config(config), Encoder.from_config(config)
    for network in (*controllers.values(), discriminator, encoder):
        freeze(network)
    styles = generator.mapping(torch.randn(512, generator.latent_dim))
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    features = auxiliaries["identity"].features
    networks = {"auxiliaries": auxiliaries, "discriminator": discriminator, "encoder": encoder}
    return Projector(config, generator, controllers, space, features, **networks)


def patches(samples: SampleSet, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Images, known values and masks of different extent; the last mask is empty."""
    rows = torch.arange(count)
    masks = samples.masks(rows)
    assert masks is not None
    masks = masks.clone()
    masks[1, :, :, 5:] = False
    masks[2:3, ..., 1:] = False
    masks[-1] = False
    values = {"age": samples.values["age_years"][rows], "position": samples.values["position_mm"][rows]}
    return samples.batch(rows), values, masks


@pytest.mark.parametrize("perceptual", ["ssim", "recognition"])
def test_a_masked_patch_alone_equals_one_among_others(
    perceptual: str, toy_brain_config: Callable[..., Config], toy_brain_samples: Callable[..., SampleSet]
) -> None:
    """Coordinates, reconstruction and every residual; all are finite, with an empty mask too."""
    projector = make(toy_brain_config(projection={"perceptual": perceptual, "steps": 6}))
    images, values, masks = patches(toy_brain_samples(), 5)
    together = projector.project(images, values, masks)
    assert all(torch.isfinite(value).all() for value in together.residuals.values())
    assert set(together.coordinates) == {"identity", "other"}
    for i in range(5):
        alone = projector.project(images[i : i + 1], {k: v[i : i + 1] for k, v in values.items()}, masks[i : i + 1])
        for name in projector.free:
            torch.testing.assert_close(alone.coordinates[name][0], together.coordinates[name][i], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(alone.images[0], together.images[i], atol=2e-3, rtol=1e-3)
        for name, value in together.residuals.items():
            torch.testing.assert_close(alone.residuals[name][0], value[i], atol=1e-3, rtol=2e-3, msg=name)


def test_residuals_do_not_see_the_background_that_was_generated(
    toy_brain_config: Callable[..., Config], toy_brain_samples: Callable[..., SampleSet]
) -> None:
    """Whatever stands outside of the mask, all residuals stay; inside, a foreign patch raises all; an empty mask has none."""
    projector = make(toy_brain_config())
    images, values, masks = patches(toy_brain_samples(), 4)
    target = projector.features(images)
    rebuilt = images + 0.02
    rebuilt[0, :, 4:7, 4:7, 4:7] += 1.0
    found = projector.residuals(images, rebuilt, target, values, masks)
    noise = torch.where(masks, rebuilt, torch.randn(rebuilt.shape, generator=torch.Generator().manual_seed(0)))
    again = projector.residuals(images, noise, target, values, masks)
    assert {"residual_ssim", "residual_condition_age", "residual_condition_position", "residual_output_position"} <= set(found)
    for name, value in found.items():
        torch.testing.assert_close(value, again[name], msg=name)
        if not name.startswith("residual_condition"):
            assert value[0] > value[1] > 0, name
            assert value[3] < 1e-5, name
    assert found["residual_l1"][1].item() == pytest.approx(0.02, abs=1e-5)


def test_a_full_mask_changes_nothing(
    toy_brain_config: Callable[..., Config], toy_brain_samples: Callable[..., SampleSet]
) -> None:
    """Residuals under a mask of ones are those without a mask."""
    projector = make(toy_brain_config())
    images, values, masks = patches(toy_brain_samples(), 4)
    target, rebuilt = projector.features(images), images + 0.1 * torch.randn(images.shape)
    without = projector.residuals(images, rebuilt, target, values)
    full = projector.residuals(images, rebuilt, target, values, torch.ones_like(masks))
    for name, value in without.items():
        torch.testing.assert_close(full[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_the_condition_of_a_vector_is_the_mean_over_its_components(
    toy_brain_config: Callable[..., Config], toy_brain_samples: Callable[..., SampleSet]
) -> None:
    """A position known 16 mm off along one axis adds a third of a tenth of the range of 160 mm."""
    projector = make(toy_brain_config())
    images, values, _ = patches(toy_brain_samples(), 2)
    network = projector.auxiliaries["position"]
    read = network(images) * 160 - 80
    known = read + torch.tensor([16.0, 0.0, 0.0])
    found = projector.residuals(images, images, projector.features(images), values | {"position": known})
    torch.testing.assert_close(found["residual_condition_position"], torch.full((2,), 0.1 / 3), atol=1e-4, rtol=1e-3)
    assert found["residual_condition_age"].shape == (2,)
