"""Controllers: they learn value -> style, resume exactly, and change only their own sub-space."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from normscape.config import Config
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.controller import Controller, EncodedController
from normscape.networks.encoder import Encoder
from normscape.networks.generator import Generator
from normscape.training.controllers import (
    generated_values,
    measure_control,
    train_controller,
    value_sweep,
    with_value,
)
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")


def test_a_controller_learns_a_smooth_map(toy_config: Callable[..., Config], tmp_path: Path) -> None:
    """The L1 error of a curve in style space falls to a small part of its spread."""
    config = toy_config(controllers={"samples": 512, "epochs": 60, "hidden": 64, "batch_size": 32, "lr_multiplier": 0.1})
    values = torch.rand(512, 1, generator=torch.Generator().manual_seed(0)) * 90
    angle = torch.deg2rad(values * 2)
    styles = torch.cat([angle.cos(), angle.sin(), values / 90, 1 - values / 90, angle.cos() ** 2, torch.zeros_like(angle)], dim=1)
    controller = train_controller(
        config.attributes[1], config, styles, values, folder=tmp_path, digest="d", device=CPU, recorder=SilentRecorder()
    )
    assert (controller(values) - styles).abs().mean() < 0.25 * (styles - styles.mean(0)).abs().mean()


def test_a_resumed_controller_equals_an_uninterrupted_one(toy_config: Callable[..., Config], tmp_path: Path) -> None:
    """Killed between two checkpoints, the training ends with the same weights, learning-rate schedule included."""
    config = toy_config()
    values = torch.rand(64, 1, generator=torch.Generator().manual_seed(0)) * 90
    styles = values.expand(-1, 6) / 90
    arguments = {"folder": tmp_path, "digest": "d", "device": CPU, "recorder": SilentRecorder()}
    straight = train_controller(config.attributes[1], config, styles, values, **arguments)
    newest = sorted(tmp_path.iterdir())[-1]
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    again = train_controller(config.attributes[1], config, styles, values, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), again.state_dict().values(), strict=True))


def test_an_encoded_controller_gives_the_styles_of_encoder_and_mapping(toy_config: Callable[..., Config]) -> None:
    """Those that any image with this known value has, and its weights travel through a file."""
    config = toy_config(controllers={"source": "encoder"}, gan={"reconstruction_weight": 1.0})
    torch.manual_seed(0)
    generator, encoder = Generator.from_config(config), Encoder.from_config(config)
    attribute, values = config.attributes[1], torch.rand(20, 1) * 90
    controller = EncodedController.of(attribute, config, encoder, generator)
    w = generator.mapping(encoder(torch.rand(20, 3, 8, 8), {"angle": values}))
    torch.testing.assert_close(controller(values), w[:, generator.subspace_slice("angle")])
    again = Controller.from_config(attribute, config)
    again.load_state_dict(controller.state_dict())
    assert torch.equal(again(values), controller(values))


def test_only_the_own_sub_space_changes(toy_config: Callable[..., Config]) -> None:
    """`with_value` writes the controller's style and leaves the rest, with one style or one a resolution."""
    config = toy_config()
    generator, controller = Generator.from_config(config), Controller.from_config(config.attributes[1], config)
    w, value = torch.randn(3, generator.latent_dim), torch.tensor([[0.0], [45.0], [90.0]])
    part = generator.subspace_slice("angle")
    for styles in (w, w[:, None].repeat(1, 2, 1)):
        result = with_value(generator, controller, styles, value)
        rest = [i for i in range(generator.latent_dim) if not part.start <= i < part.stop]
        assert torch.equal(result[..., rest], styles[..., rest])
        torch.testing.assert_close(result[..., part] if styles.ndim == 2 else result[:, 1, part], controller(value))


def test_measurement_and_sweep_have_the_promised_shapes(toy_config: Callable[..., Config]) -> None:
    """Rows of the measurement, ranges, and the sweep's axes."""
    config = toy_config()
    torch.manual_seed(0)
    generator = Generator.from_config(config).requires_grad_(False)
    networks = {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}
    controller = Controller.from_config(config.attributes[1], config).requires_grad_(False)
    measured = measure_control(
        config.attributes[1], generator, controller, networks, identity="identity", count=10, seed=0, batch_size=4
    )
    assert {name: tuple(v.shape) for name, v in measured.items()} == {
        "asked": (10, 1),
        "read": (10, 1),
        "identity_distance": (10,),
    }
    assert measured["asked"].min() >= 0
    assert measured["asked"].max() <= 90
    assert measured["identity_distance"].min() >= 0
    assert measured["identity_distance"].max() <= 1
    assert value_sweep(generator, controller, identities=2, values=torch.linspace(0, 90, 5)[:, None], seed=0).shape == (
        2,
        5,
        3,
        8,
        8,
    )
    styles, values = generated_values(generator, {"angle": networks["angle"]}, count=9, seed=0, purpose="t", batch_size=4)
    assert styles.shape == (9, generator.latent_dim)
    assert values["angle"].shape == (9, 1)
