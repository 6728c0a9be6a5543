"""Projection: per-sample results, fixed conditions, and the image comes back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from normscape.config import Config
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
    controller = Controller.from_config(config.attributes[1], config)
    freeze(controller)
    styles = generator.mapping(torch.randn(512, generator.latent_dim))
    space = {name: WhitenedSubspace.fit(styles[:, generator.subspace_slice(name)]) for name in generator.subspaces}
    auxiliaries = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    discriminator, encoder = Discriminator.from_config(config), Encoder.from_config(config)
    for network in (discriminator, encoder):
        freeze(network)
    return Projector(
        config,
        generator,
        {"angle": controller},
        space,
        auxiliaries["identity"].features,
        auxiliaries=auxiliaries,
        discriminator=discriminator,
        encoder=encoder,
    )


def own_images(projector: Projector, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Images of the generator at known whitened coordinates and conditions."""
    random = torch.Generator().manual_seed(3)
    layers = len(projector.generator.resolutions)
    u = {name: torch.randn(count, layers, projector.generator.subspaces[name], generator=random) * 0.5 for name in projector.free}
    values = {"angle": torch.rand(count, 1, generator=random) * 90}
    return projector.generator.synthesize(projector.styles(u, projector.encode(values))), values, u


@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_of_one_equals_a_batch_of_many(dims: int, toy_config: Callable[..., Config]) -> None:
    """An image projected alone and among others gives the same numbers."""
    projector = make(toy_config(dims=dims, projection={"steps": 8}))
    images, values, _ = own_images(projector, 5)
    together = projector.project(images, values)
    for i in range(5):
        alone = projector.project(images[i : i + 1], {"angle": values["angle"][i : i + 1]})
        for name in projector.free:
            torch.testing.assert_close(alone.coordinates[name][0], together.coordinates[name][i], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(alone.images[0], together.images[i], atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(alone.residuals["residual_l1"][0], together.residuals["residual_l1"][i], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_with_early_stops_a_batch_of_one_equals_a_batch_of_many(dims: int, toy_config: Callable[..., Config]) -> None:
    """Each image stops by its own loss: the same steps and the same numbers, alone and among others that stop elsewhere."""
    settings = {"steps": 40, "learning_rate": 0.2, "stop_tolerance": 0.05, "stop_window": 4}
    torch.set_default_dtype(torch.float64)  # so that rounding decides about no stop
    try:
        projector = make(toy_config(dims=dims, projection=settings))
        parts = projector.space.items()
        projector.space = {n: WhitenedSubspace(p.mean.double(), p.components.double(), p.deviation.double()) for n, p in parts}
        images, values, _ = own_images(projector, 4)
        together = projector.project(images, values)
        assert len(set(together.steps.tolist())) > 1
        for i in range(4):
            alone = projector.project(images[i : i + 1], {"angle": values["angle"][i : i + 1]})
            assert alone.steps.tolist() == together.steps[i : i + 1].tolist()
            for name in projector.free:
                torch.testing.assert_close(alone.coordinates[name][0], together.coordinates[name][i], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(alone.images[0], together.images[i], atol=1e-6, rtol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_image_of_the_generator_is_rebuilt(toy_config: Callable[..., Config]) -> None:
    """Most of the distance between the mean image and the image is closed."""
    projector = make(toy_config(projection={"steps": 150, "learning_rate": 0.1}))
    images, values, _ = own_images(projector, 4)
    start = projector.generator.synthesize(
        projector.styles(
            {n: torch.zeros(4, 2, projector.generator.subspaces[n]) for n in projector.free}, projector.encode(values)
        )
    )
    result = projector.project(images, values)
    assert result.residuals["residual_l1"].mean() < 0.4 * (start - images).abs().mean()
    assert set(result.coordinates) == {"identity", "other"}
    assert result.lengths()["identity"].shape == (4, 2)


def test_the_encoder_gives_the_start(toy_config: Callable[..., Config]) -> None:
    """Before the first step the free coordinates are the encoder's answer, whitened, at every resolution."""
    config = toy_config(gan={"reconstruction_weight": 1.0}, projection={"start": "encoder"})
    projector = make(config)
    images, values, _ = own_images(projector, 3)
    start = projector.start(images, values)
    assert projector.encoder is not None
    w = projector.generator.mapping(projector.encoder(images, values))
    for name in projector.free:
        assert torch.equal(start[name][:, 0], start[name][:, 1])
        restored = projector.space[name].restore(start[name][:, 0])
        torch.testing.assert_close(restored, w[:, projector.generator.subspace_slice(name)], atol=1e-3, rtol=1e-3)
    assert all((u == 0).all() for u in make(toy_config()).start(images, values).values())


@pytest.mark.parametrize("dims", [2, 3])
def test_residuals_find_a_foreign_patch(dims: int, toy_config: Callable[..., Config]) -> None:
    """All are zero for a perfect reconstruction but what the angle network reads; a patch raises all, and peaks are local."""
    projector = make(toy_config(dims=dims))
    images, values, _ = own_images(projector, 2)
    target = projector.features(images)
    perfect = projector.residuals(images, images.clone(), target, values)
    known = {name: value for name, value in perfect.items() if name != "residual_condition_angle"}
    assert max(value.max().item() for value in known.values()) < 1e-5
    rebuilt = images.clone()
    rebuilt[(0, slice(None), *[slice(1, 4)] * dims)] += 1.0  # in the first image a patch is missed
    rebuilt[1] += 0.01
    found = projector.residuals(images, rebuilt, target, values)
    for name in known:
        assert found[name][0] > found[name][1] > 0, name
    assert found["residual_peak8"][1].item() == pytest.approx(1.0, abs=0.01)


def test_known_conditions_are_encoded_and_not_optimised(toy_config: Callable[..., Config]) -> None:
    """The angle's sub-space holds the controller's style at every resolution."""
    projector = make(toy_config())
    _images, values, u = own_images(projector, 2)
    styles = projector.styles(u, projector.encode(values))
    part = projector.generator.subspace_slice("angle")
    assert torch.equal(styles[:, 0, part], styles[:, 1, part])
    torch.testing.assert_close(styles[:, 0, part], projector.controllers["angle"](values["angle"]))


def test_length_penalty_is_the_formula(toy_config: Callable[..., Config]) -> None:
    """L_r sums max(0, r - radius) over sub-spaces and resolutions; 3 is the thesis's radius."""
    projector = make(toy_config(projection={"radius": 3.0}))
    u = {"identity": torch.zeros(1, 2, 6), "other": torch.zeros(1, 2, 4)}
    u["identity"][0, 0, 0], u["identity"][0, 1, 0], u["other"][0, 0, 1] = 5.0, 2.0, -4.0
    assert projector.length_penalty(u).item() == pytest.approx(2.0 + 0.0 + 1.0, abs=1e-4)
    assert make(toy_config()).radii["identity"] != 3.0


@pytest.mark.parametrize("dims", [2, 3])
def test_the_gradient_is_that_of_the_squared_length(dims: int, toy_config: Callable[..., Config]) -> None:
    """Along any direction the length changes by the gradient; its map is an image's own, in any batch, and 0 outside the mask."""
    projector = make(toy_config(dims=dims, projection={"start": "encoder"}, gan={"reconstruction_weight": 1.0}))
    images, values, _ = own_images(projector, 3)
    mask = torch.ones_like(images[:, :1], dtype=torch.bool)
    mask[..., :2] = False
    with torch.no_grad():  # as callers may have it
        found = projector.gradient(images, values, mask)
        alone = [projector.gradient(images[i : i + 1], {"angle": values["angle"][i : i + 1]}, mask[i : i + 1]) for i in range(3)]
    assert found is not None
    assert found.shape == mask.shape
    assert (found[~mask] == 0).all()
    torch.testing.assert_close(torch.cat([one for one in alone if one is not None]), found, rtol=1e-4, atol=1e-6)

    def length(pixels: torch.Tensor) -> float:
        u = projector.start(pixels, values)
        return sum(float(part[0, 0].double().square().sum()) for part in u.values())

    everywhere = projector.gradient(images, values)
    assert everywhere is not None
    corner, step = (slice(4, 5),) * dims, torch.zeros_like(images)
    slopes = torch.zeros_like(images[0])
    near = tuple(slice(3, 6) for _ in range(dims))
    for place in torch.cartesian_prod(torch.arange(images.shape[1]), *(torch.arange(3, 6),) * dims).tolist():
        step.zero_()
        step[(0, *place)] = 0.01
        slopes[tuple(place)] = (length(images + step) - length(images - step)) / 0.02
    expected = slopes[(slice(None), *near)].abs().mean()
    torch.testing.assert_close(everywhere[(0, 0, *corner)].squeeze(), expected, rtol=0.05, atol=1e-4)


def test_without_an_encoder_there_is_no_gradient(toy_config: Callable[..., Config]) -> None:
    projector = make(toy_config())
    images, values, _ = own_images(projector, 1)
    projector.encoder = None
    assert projector.gradient(images, values) is None


def test_known_conditions_can_have_the_encoders_styles(toy_config: Callable[..., Config]) -> None:
    """Those that the encoder gives any image with this value; generated images keep the controllers'."""
    settings = {"gan": {"reconstruction_weight": 1.0}}
    plain = make(toy_config(**settings))
    encoded = make(toy_config(controllers={"conditions": "encoder"}, **settings))
    values = {"angle": torch.rand(6, 1) * 90}
    assert encoded.encoder is not None
    w = encoded.generator.mapping(encoded.encoder(torch.rand(6, 3, 8, 8), values))
    torch.testing.assert_close(encoded.encode(values)["angle"], w[:, encoded.generator.subspace_slice("angle")])
    torch.testing.assert_close(plain.encode(values)["angle"], plain.controllers["angle"](values["angle"]))
    torch.testing.assert_close(encoded.controllers["angle"](values["angle"]), plain.controllers["angle"](values["angle"]))
