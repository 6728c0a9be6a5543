"""Feature maps of a network that is not trained for the task: the experiment's identity network, or one of ImageNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from normscape.baselines import Training
from normscape.datasets.batches import ImageBatch
from normscape.errors import DataError
from normscape.losses.masked import resampled
from normscape.losses.reconstruction import Efficientnet
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.training.checkpoint import load_module

Kind = Literal["auxiliary", "efficientnet_lite0"]
MAPS: dict[str, int] = {"auxiliary": 5, "efficientnet_lite0": len(Efficientnet.TAPS)}
"""How many maps each network has, from fine to coarse: the stem and four stages; four taps."""
EFFICIENTNET_SIDE = 16
"""Least side of an image of which EfficientNet's last tap is left something."""


def stages_of(features: Kind) -> tuple[str, ...]:
    """Finished stages of the experiment that such features are read from."""
    return ("auxiliary",) if features == "auxiliary" else ()


def check_features(kind: str, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers of a setting, ascending.

    Raises:
        ValueError: there is no such network or layer.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"features must be one of {', '.join(get_args(Kind))}, found {kind}")
    wrong = [layer for layer in layers if layer not in range(MAPS[kind])]
    if wrong or not layers:
        raise ValueError(f"layers of {kind} are 0 to {MAPS[kind] - 1}, found {list(layers)}")
    return tuple(sorted(set(layers)))


@dataclass(frozen=True)
class FrozenFeatures:
    """A frozen network and the maps that are looked at.

    Attributes:
        network: images `(B, C, *S)` to maps `(B, C_l, *S_l)`.
        layers: numbers of the maps, ascending.
        device: where to compute.
    """

    network: Callable[[Tensor], list[Tensor]]
    layers: tuple[int, ...]
    device: torch.device

    def maps(self, batch: ImageBatch) -> list[Tensor]:
        """Feature maps `(B, C_l, *S_l)`, from fine to coarse.

        What lies outside the mask becomes 0, the mean of the noise there: it must not change what is said of the rest.
        """
        images = batch.images if batch.masks is None else batch.images * batch.masks
        with torch.no_grad():
            found = self.network(images.to(self.device))
        return [found[layer].float() for layer in self.layers]

    def cells(self, batch: ImageBatch, *, average: int = 1) -> Cells:
        """All maps on the grid of the finest, interpolated and joined.

        Args:
            batch: images.
            average: side of the neighbourhood, odd, over which each map is averaged first.
        """
        maps = self.maps(batch)
        sides = tuple(maps[0].shape[2:])
        if average > 1:
            maps = [_averaged(x, average) for x in maps]
        mode = "bilinear" if len(sides) == 2 else "trilinear"
        fine = [x if x.shape[2:] == sides else F.interpolate(x, size=sides, mode=mode, align_corners=False) for x in maps]
        share = None if batch.masks is None else resampled(batch.masks.to(self.device), sides)
        return Cells(torch.cat(fine, dim=1).flatten(2).transpose(1, 2), share, sides)


@dataclass(frozen=True)
class Cells:
    """Features at the cells of a coarse grid over each image."""

    values: Tensor
    """float32 `(B, cells, D)`."""
    share: Tensor | None
    """How much of each cell counts, in [0, 1] `(B, cells)`; None when everything does."""
    sides: tuple[int, ...]
    """Cells along each axis."""

    def on_image(self, values: Tensor, batch: ImageBatch) -> Tensor:
        """One value a cell `(B, cells)`, interpolated to the images: `(B, 1, *S)` on the CPU, 0 outside the mask."""
        mode = "bilinear" if len(self.sides) == 2 else "trilinear"
        coarse = values.view(-1, 1, *self.sides)
        fine = F.interpolate(coarse, size=batch.images.shape[2:], mode=mode, align_corners=False).cpu().float()
        return fine if batch.masks is None else fine * batch.masks


def _averaged(x: Tensor, side: int) -> Tensor:
    """The mean over each cell's neighbourhood of this odd side, as far as it lies in the map; the map may be smaller."""
    pool, reach = (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d), (side // 2,) * (2 * (x.ndim - 2))
    inside = F.pad(torch.ones_like(x[:1, :1]), reach)
    found: Tensor = pool(F.pad(x, reach), side, stride=1) / pool(inside, side, stride=1)
    return found


def load_features(kind: Kind, layers: tuple[int, ...], training: Training) -> FrozenFeatures:
    """The network that a setting names.

    Args:
        kind: `auxiliary`, the experiment's first auxiliary network, or `efficientnet_lite0` with ImageNet weights.
        layers: see `check_features`.
        training: where the experiment's networks lie, and the device.

    Raises:
        DataError: the experiment was not run so far; the package of the weights is missing; the images are of another kind.
        CheckpointError: the file of weights is missing or damaged.
    """
    config = training.config
    if kind == "efficientnet_lite0":
        if (config.dims, config.image_channels) != (2, 3):
            raise DataError(
                "features: efficientnet_lite0 sees 2D images of 3 channels only, "
                f"found dims {config.dims}, image_channels {config.image_channels}; use `features: auxiliary`"
            )
        if min(training.healthy.shape[1:]) < EFFICIENTNET_SIDE:
            raise DataError(f"features: efficientnet_lite0 needs images of at least {EFFICIENTNET_SIDE} pixels a side")
        return FrozenFeatures(Efficientnet().to(training.device), layers, training.device)
    if "auxiliary" not in training.folders:
        raise DataError(
            "features: auxiliary are those of the experiment's own identity network, which is not there: "
            "run the experiment first (`normscape run CONFIG`)"
        )
    attribute = config.attributes[0]
    network = AuxiliaryNetwork.from_config(attribute, config)
    load_module(network, training.folders["auxiliary"] / f"{attribute.name}.safetensors")
    return FrozenFeatures(network.to(training.device).fold().features, layers, training.device)
