"""Augmentation of batches: ranges, seeds, and what each step does."""

from __future__ import annotations

import pytest
import torch

from normscape.config import AugmentationConfig
from normscape.datasets.augmentation import augment, pad_and_crop, rotate_hue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(5, 3, 16, 16), (4, 1, 8, 8, 8)])
def test_augment_keeps_shape_and_range_and_follows_the_seed(shape: tuple[int, ...]) -> None:
    """2D colour and 3D grey: same seed, same result; another seed, another; the input is untouched."""
    images = torch.rand(shape, generator=generator(1)) * 2 - 1
    before = images.clone()
    result = augment(images, AugmentationConfig(), hue=True, generator=generator())
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.abs().max() <= 1
    assert torch.equal(result, augment(images, AugmentationConfig(), hue=True, generator=generator()))
    assert not torch.equal(result, augment(images, AugmentationConfig(), hue=True, generator=generator(9)))
    assert torch.equal(images, before)


def test_all_strengths_zero_is_the_identity() -> None:
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    config = AugmentationConfig(hue_degrees=0, pad_fraction=0, noise_std_max=0)
    assert torch.equal(augment(images, config, hue=True, generator=generator()), images)


def test_hue_keeps_greys_and_luma() -> None:
    """Greys are on the axis and stay; of other colours the luma stays; a whole turn is the identity; 120 degrees is not."""
    grey = torch.linspace(-1, 1, 9).view(1, 1, 3, 3).expand(1, 3, 3, 3)
    assert torch.allclose(rotate_hue(grey, torch.tensor([77.0])), grey, atol=1e-5)
    colours = torch.rand(2, 3, 8, 8, generator=generator())
    turned = rotate_hue(colours, torch.tensor([120.0, 360.0]))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    assert torch.allclose((turned * luma).sum(1), (colours * luma).sum(1), atol=1e-5)
    assert torch.allclose(turned[1], colours[1], atol=1e-5)
    assert (turned[0] - colours[0]).abs().max() > 0.2


def test_hue_is_left_alone_when_not_asked() -> None:
    """Recognition: without hue, colours only move and get noise."""
    images = torch.full((8, 3, 8, 8), -0.2)
    images[:, 0] = 0.7
    config = AugmentationConfig(pad_fraction=0, noise_std_max=0)
    assert torch.equal(augment(images, config, hue=False, generator=generator()), images)
    assert not torch.allclose(augment(images, config, hue=True, generator=generator()), images, atol=0.05)


@pytest.mark.parametrize("dims", [2, 3])
def test_crops_are_shifts_filled_with_background(dims: int) -> None:
    """Each image is its old self, shifted by at most the padding, white where nothing was; all shifts occur."""
    side, pad = 8, 2
    images = torch.rand(200, 2, *[side] * dims, generator=generator()) * 0.5
    result = pad_and_crop(images, pad / side, generator=generator(3))
    padded = torch.nn.functional.pad(images, [pad] * 2 * dims, value=1.0)
    shifts = set()
    for before, after in zip(padded, result, strict=True):
        found = [
            place
            for place in torch.cartesian_prod(*[torch.arange(2 * pad + 1)] * dims).tolist()
            if torch.equal(before[(slice(None), *(slice(p, p + side) for p in place))], after)
        ]
        assert len(found) == 1
        shifts.add(tuple(found[0]))
    assert len({s[0] for s in shifts}) == 2 * pad + 1
    assert len({s[-1] for s in shifts}) == 2 * pad + 1


def test_noise_differs_in_strength_between_images() -> None:
    """The standard deviation is uniform between 0 and the largest."""
    images = torch.zeros(400, 3, 16, 16)
    config = AugmentationConfig(hue_degrees=0, pad_fraction=0, noise_std_max=0.1)
    std = augment(images, config, hue=False, generator=generator()).flatten(1).std(dim=1)
    assert std.max() < 0.11
    assert std.min() < 0.01
    assert std.mean() == pytest.approx(0.05, abs=0.005)
