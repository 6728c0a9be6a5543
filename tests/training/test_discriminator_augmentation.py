"""What the discriminator sees: unchanged at probability 0, differentiable twice, repeatable, changed more where it is sure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normscape.config import Config
from normscape.datasets.samples import SampleSet
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.networks.discriminator import Discriminator
from normscape.training.batches import draw_real
from normscape.training.discriminator_augmentation import DiscriminatorAugmentation, move, turned
from normscape.training.gan import GanTrainer, train_gan
from normscape.training.recorder import SilentRecorder

CPU = torch.device("cpu")
Make = Callable[..., Config]
MakeSamples = Callable[..., SampleSet]
STILL = {"translation_fraction": 0.0, "scale": 0.0, "rotation_degrees": 0.0, "brightness": 0.0, "contrast": 0.0}
"""No change at all; a test adds one."""


def augmentation(make: Make, dims: int = 2, **settings: Any) -> DiscriminatorAugmentation:
    """An augmentation that changes everything, or what `settings` say."""
    settings = {"mode": "fixed", "probability": 1.0} | settings
    return DiscriminatorAugmentation(make(dims=dims, gan={"augmentation": settings}), CPU)


def images(count: int, dims: int, side: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise `(count, 2, *S)` in [-1, 1]."""
    return torch.rand(count, 2, *(side,) * dims, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1


def numbers(of: DiscriminatorAugmentation, count: int, seed: int = 1) -> Tensor:
    """Random numbers for so many images."""
    return of.draw(count, torch.Generator().manual_seed(seed))


def auxiliaries(config: Config) -> dict[str, AuxiliaryNetwork]:
    """Auxiliary networks with fixed random weights."""
    torch.manual_seed(7)
    return {a.name: AuxiliaryNetwork.from_config(a, config).fold() for a in config.attributes}


# ---- what is changed


@pytest.mark.parametrize("dims", [2, 3])
def test_probability_0_is_the_identity_bit_for_bit(dims: int, toy_config: Make) -> None:
    """And at probability 1 every image is changed."""
    augment, x = augmentation(toy_config, dims), images(16, dims)
    assert ((augment(x, numbers(augment, 16)) - x).flatten(1).abs().amax(1) > 0.01).all()
    augment.probability.zero_()
    assert torch.equal(augment(x, numbers(augment, 16)), x)


@pytest.mark.parametrize("change", [key for key in STILL if key != "translation_fraction"])
def test_the_probability_is_the_share_of_changed_images(change: str, toy_config: Make) -> None:
    """The others stay as they are, bit for bit."""
    augment = augmentation(toy_config, probability=0.3, **STILL | {change: 0.25})
    x = images(1, 2).expand(2000, -1, -1, -1)
    changed = (augment(x, numbers(augment, 2000)) != x).flatten(1).any(1)
    assert 0.27 < changed.float().mean() < 0.33


@pytest.mark.parametrize("dims", [2, 3])
def test_shifts_are_whole_pixels_and_edges_are_mirrored(dims: int, toy_config: Make) -> None:
    """Every shift up to the reach occurs along every axis, equally often."""
    x = images(3, dims)
    shift = torch.tensor([[1, -2, 0], [0, 0, 0], [2, 2, -1]])[:, :dims]
    padded = x
    for axis in range(2, 2 + dims):
        padded = torch.cat([padded.narrow(axis, 0, 2).flip(axis), padded, padded.narrow(axis, 6, 2).flip(axis)], axis)
    found = move(x, shift, torch.zeros(3, dims, dtype=torch.bool))
    for row, steps in enumerate(shift.tolist()):
        assert torch.equal(found[row], padded[(row, slice(None), *(slice(2 + s, 10 + s) for s in steps))])
    augment = augmentation(toy_config, dims, **STILL | {"translation_fraction": 0.25})
    ramp = torch.arange(8.0).view(8, *(1,) * (dims - 1)).expand(8, *(8,) * (dims - 1))[None, None].expand(3000, 1, *(8,) * dims)
    middle = augment(ramp, numbers(augment, 3000))[(slice(None), 0, *(4,) * dims)]
    assert (torch.bincount(middle.long(), minlength=8)[2:7] - 600).abs().max() < 90
    assert set(middle.tolist()) == {2.0, 3.0, 4.0, 5.0, 6.0}


def test_only_the_axes_that_are_named_are_mirrored(toy_brain_config: Make) -> None:
    """Left to right, x, is the last array axis; half of the images at probability 1."""
    settings = {"mode": "fixed", "probability": 1.0, "flip_axes": ["x"]} | STILL
    augment = DiscriminatorAugmentation(toy_brain_config(gan={"augmentation": settings}), CPU)
    x = images(1, 3).expand(500, -1, -1, -1, -1)
    found = augment(x, numbers(augment, 500))
    mirrored = (found == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(found[~mirrored], x[~mirrored])
    assert 210 < mirrored.sum() < 290


@pytest.mark.parametrize("dims", [2, 3])
def test_a_quarter_turn_and_twice_the_size(dims: int) -> None:
    """In each plane of array axes; a ramp that is enlarged is half as steep."""
    x = images(1, dims, dtype=torch.float64)
    planes = [(-1, -2)] if dims == 2 else [(-1, -2), (-1, -3), (-2, -3)]
    one = torch.ones(1, 1, dtype=torch.float64)
    for plane, axes in enumerate(planes):
        angles = torch.zeros(1, len(planes), dtype=torch.float64)
        angles[0, plane] = torch.pi / 2
        found = turned(x, one, angles)
        assert any(torch.allclose(found, torch.rot90(x, way, axes), atol=1e-10) for way in (1, -1)), axes
    ramp = torch.arange(8.0, dtype=torch.float64).expand(1, 1, *(8,) * dims)
    enlarged = turned(ramp, 2 * one, torch.zeros(1, len(planes), dtype=torch.float64))
    torch.testing.assert_close(enlarged, 3.5 + (ramp - 3.5) / 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_an_image_is_changed_alike_in_any_company(dims: int, toy_config: Make) -> None:
    """A row of the batch alone gives what it gives among others."""
    augment, x = augmentation(toy_config, dims), images(8, dims)
    drawn = numbers(augment, 8)
    together = augment(x, drawn)
    for row in (0, 3, 7):
        alone = augment(x[row : row + 1], drawn[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=0, atol=1e-6)


# ---- derivatives


@pytest.mark.parametrize("dims", [2, 3])
def test_first_and_second_derivatives_with_respect_to_the_unchanged_image(dims: int, toy_config: Make) -> None:
    """Of the changes alone, every entry, and of the discriminator that sees changed images, as R1 needs it."""
    augment = augmentation(toy_config, dims)
    augment.mirrored = (dims - 1,)
    drawn = numbers(augment, 2).double()
    x = images(2, dims, 4 if dims == 2 else 2, torch.float64)[:, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, drawn), x)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, drawn), x)
    torch.manual_seed(0)
    discriminator = Discriminator(channels=(3, 4), dims=dims, image_channels=1, deviation_group=2).double()
    x = images(2, dims, 8, torch.float64)[:, :1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: discriminator(augment(x, drawn)), x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: discriminator(augment(x, drawn)), x, fast_mode=True)


def test_bf16_leaves_the_changes_in_float32(toy_config: Make) -> None:
    augment, x = augmentation(toy_config), images(4, 2)
    expected = augment(x, numbers(augment, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(x, numbers(augment, 4)), expected)


# ---- how often


def test_the_probability_rises_where_d_is_too_sure_and_falls_otherwise(toy_config: Make) -> None:
    """By the images of an interval over `images_to_full`, once an interval, never beyond 0 and 1."""
    settings = {"mode": "adaptive", "probability": 0.5, "interval": 2, "images_to_full": 160, "target": 0.6}
    augment = augmentation(toy_config, **settings)
    seen = []
    for step, signs in enumerate([8, 6, 6, 2, 8, 8, *[-8] * 12, *[8] * 24], start=1):  # of 8 images
        augment.follow(torch.tensor(float(signs)), step)
        seen.append((augment.probability.item(), augment.overfitting.item()))
    steps, signs = zip(*seen[1::2], strict=True)
    assert list(signs[:4]) == [0.875, 0.5, 1.0, -1.0]
    expected = [0.6, 0.5, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, *(0.1 * n for n in range(1, 11)), 1.0, 1.0]
    assert list(steps) == pytest.approx(expected, abs=1e-5)
    assert [p for p, _ in seen[2::2]] == list(steps[:-1])  # unchanged within an interval


def test_a_fixed_probability_stays(toy_config: Make) -> None:
    """What it would follow is measured all the same."""
    augment = augmentation(toy_config, probability=0.25, interval=1)
    augment.follow(torch.tensor(8.0), 1)
    assert (augment.probability, augment.overfitting) == (0.25, 1.0)


# ---- in the training


def test_losses_of_unchanged_images_stay_what_they_are(toy_config: Make, toy_samples: MakeSamples) -> None:
    """Contrastive loss, distances and reconstruction are those without augmentation, bit for bit; what D says is not."""
    kept = []
    for settings in ({}, {"mode": "fixed", "probability": 1.0}):
        config = toy_config(gan={"reconstruction_weight": 5.0, "augmentation": settings})
        first, second, third = (GanTrainer(config, auxiliaries(config), CPU) for _ in range(3))
        real, values = draw_real(toy_samples(), config, 0)
        judged = {"loss_d": second.discriminator_phase(real, 0)["loss_d"]} | third.r1_phase(real, 0)
        kept.append(first.generator_phase(0, real, values) | judged)
    plain, changed = kept
    assert plain.keys() == changed.keys()
    assert {name for name, value in plain.items() if not torch.equal(value, changed[name])} == {"loss_g", "loss_d", "r1"}


def test_without_augmentation_there_is_nothing_of_it(toy_config: Make) -> None:
    """No state in checkpoints, and no module that could draw random numbers."""
    config = toy_config()
    trainer = GanTrainer(config, {}, CPU)
    assert trainer.augmentation is None
    assert set(trainer.state("d").tensors) == {"mean_path_length"}


class Keep(SilentRecorder):
    """Keeps what was recorded, by step."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def metrics(self, values, step):
        self.values.setdefault(step, {}).update(values)


@pytest.mark.parametrize("brain", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    brain: bool,
    toy_config: Make,
    toy_samples: MakeSamples,
    toy_brain_config: Make,
    toy_brain_samples: MakeSamples,
    tmp_path: Path,
) -> None:
    """Cut off in the middle of an interval; probability and mean sign are among the metrics, and change."""
    settings = {"mode": "adaptive", "probability": 0.5, "interval": 2, "images_to_full": 100}
    settings |= {"flip_axes": ["x"]} if brain else {}
    make, samples = (toy_brain_config, toy_brain_samples()) if brain else (toy_config, toy_samples())
    cut, last = (4, 7) if brain else (3, 6)  # a brain's first three steps are a warm-up
    gan = {"augmentation": settings, "checkpoint_interval": cut, "sample_interval": 100, "path_length_weight": 0.0}
    whole, half = make(gan=gan | {"steps": last}), make(gan=gan | {"steps": cut})
    frozen = auxiliaries(whole)
    kept, resumed = Keep(), Keep()
    straight = train_gan(whole, samples, frozen, folder=tmp_path / "a", digest="d", device=CPU, recorder=kept)
    train_gan(half, samples, frozen, folder=tmp_path / "b", digest="d", device=CPU, recorder=resumed)
    again = train_gan(whole, samples, frozen, folder=tmp_path / "b", digest="d", device=CPU, recorder=resumed)
    for name in ("generator", "discriminator", "averaged"):
        pairs = zip(getattr(straight, name).state_dict().values(), getattr(again, name).state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name
    assert straight.augmentation is not None
    assert again.augmentation is not None
    assert all(torch.equal(a, again.augmentation.state()[name]) for name, a in straight.augmentation.state().items())
    resumed.values[cut] = kept.values[cut]  # the shorter run also measures its last step's images
    assert kept.values == resumed.values
    assert {values["augmentation/probability"] for step, values in kept.values.items() if step >= cut} - {0.5}
    assert "augmentation/overfitting" in kept.values[last]
