"""Reconstruction losses: one value a sample, and the optional feature networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from normscape.config import Config, ProjectionConfig
from normscape.errors import DataError
from normscape.losses.reconstruction import Efficientnet, Vgg16, feature_residuals, pixel_residual


def test_pixel_residuals_are_means_a_sample() -> None:
    """A constant difference of 0.5 in one sample shows in that sample alone."""
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[1] += 0.5
    assert pixel_residual(a, b, "l1").tolist() == [0.0, 0.5]
    assert pixel_residual(a, b, "l2").tolist() == [0.0, 0.25]


def test_feature_residuals_compare_directions() -> None:
    """Scaling a feature map changes nothing; opposite directions are at a squared distance of 4."""
    x = torch.randn(2, 8, 3, 3)
    assert feature_residuals([x], [3 * x])[0].max() < 1e-6
    torch.testing.assert_close(feature_residuals([x], [-x])[0], torch.full((2,), 4.0))


def test_efficientnet_sees_the_difference_of_images() -> None:
    """The packaged weights load, the residual of equal images is 0, and gradients reach the images."""
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the `perceptual` extra")
    network = Efficientnet()
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, (torch.rand(2, 3, 32, 32) * 2 - 1).requires_grad_()
    assert torch.stack(feature_residuals(network(a), network(a))).abs().max() == 0
    torch.stack(feature_residuals(network(a), network(b))).sum().backward()
    assert b.grad is not None
    assert b.grad.abs().max() > 0


def vgg_weights() -> dict[str, torch.Tensor]:
    """Random weights under torchvision's names."""
    weights, inputs, position = {}, 3, 0
    for width, count in Vgg16.PLAN:
        for _ in range(count):
            weights[f"features.{position}.weight"] = torch.randn(width, inputs, 3, 3) * 0.05
            weights[f"features.{position}.bias"] = torch.zeros(width)
            inputs, position = width, position + 2
        position += 1
    return weights


def test_vgg16_reads_torchvisions_names(tmp_path: Path) -> None:
    """A file with torchvision's keys gives four maps; other files give an error that names the field."""
    path = tmp_path / "vgg16.pth"
    torch.save(vgg_weights(), path)
    maps = Vgg16(path)(torch.rand(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    torch.save({"something": torch.zeros(1)}, path)
    with pytest.raises(DataError, match=r"perceptual_path.*does not hold"):
        Vgg16(path)
    with pytest.raises(DataError, match="does not exist"):
        Vgg16(tmp_path / "none.pth")


def test_vgg16_needs_a_path() -> None:
    """The configuration asks for the file at once."""
    with pytest.raises(ValueError, match="perceptual_path"):
        ProjectionConfig(perceptual="vgg16")


def test_networks_of_pictures_are_refused_for_volumes(toy_brain_config: Callable[..., Config]) -> None:
    """VGG16 and EfficientNet see three channels in 2D; structural similarity and the recognition network see everything."""
    with pytest.raises(ValueError, match=r"projection\.perceptual: efficientnet_lite0 sees 2D images.*found dims 3"):
        toy_brain_config(projection={"perceptual": "efficientnet_lite0"})
    assert toy_brain_config(projection={"perceptual": "recognition"}).projection.perceptual == "recognition"


def test_patches_of_a_brain_are_not_padded(toy_brain_config: Callable[..., Config]) -> None:
    """White padding and shifts would teach the position network something wrong."""
    with pytest.raises(ValueError, match=r"augmentation\.pad_fraction: must be 0 for source brain.*found 0\.125"):
        toy_brain_config(augmentation={"pad_fraction": 0.125})
