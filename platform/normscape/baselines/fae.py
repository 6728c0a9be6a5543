"""Feature autoencoder: rebuilds the features of a frozen network instead of pixels, compared by SSIM (Meissen et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Norm
from monai.networks.nets.autoencoder import AutoEncoder
from torch import Tensor, nn

from normscape.baselines import Scores, Training
from normscape.baselines.learning import (
    Course,
    Inputs,
    Seen,
    Step,
    check_choice,
    check_positive,
    fresh_weights,
    minimise,
)
from normscape.baselines.networks import ACTIVATION, NORM
from normscape.datasets.batches import ImageBatch
from normscape.errors import DataError
from normscape.losses.masked import resampled, weighted_mean, worst
from normscape.networks.auxiliary import AuxiliaryNetwork
from normscape.training.checkpoint import load_module

FeatureScore = Literal["worst", "mean"]
"""The largest, or the mean, of 1 - SSIM over the places of the feature map."""
WINDOW = 5
"""Side of SSIM's window, in places of the feature map."""
FEATURE_RANGE = 6.0
"""What SSIM takes for the range of features: three standard deviations to each side."""
_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class FeatureNetwork(nn.Module):
    """Frozen features side by side at the finest resolution among them, and an autoencoder that rebuilds them.

    Args:
        extractor: frozen.
        layers: which of its maps, 0 the stem.
        image_shape: (C, *S).
        width: channels of the autoencoder's first stage; the second has twice as many.
    """

    def __init__(self, extractor: AuxiliaryNetwork, layers: Sequence[int], image_shape: Sequence[int], *, width: int) -> None:
        super().__init__()
        self.layers, dims = tuple(layers), len(image_shape) - 1
        # kept out of the module's parameters and modes: frozen whatever is trained around it
        self.extract = extractor.features
        parameter = next(extractor.parameters())
        with torch.no_grad():
            maps = self._chosen(torch.zeros(1, *image_shape, device=parameter.device))
        self.sides = tuple(maps[0].shape[2:])
        channels = sum(m.shape[1] for m in maps)
        # every channel gets mean 0 and variance 1 over the training images; momentum None: the plain average of all batches
        self.standardise = Norm[Norm.BATCH, dims](channels, affine=False, momentum=None)
        self.autoencoder = AutoEncoder(dims, channels, channels, (width, 2 * width), (2, 2), act=ACTIVATION, norm=NORM)

    def _chosen(self, images: Tensor) -> list[Tensor]:
        maps = self.extract(images)
        return [maps[i] for i in self.layers]

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, C, *S)` to `(B, *places)`: 1 - SSIM of features and rebuilt features, mean over the channels."""
        mode = _INTERPOLATION[images.ndim - 2]
        with torch.no_grad():
            wide = [F.interpolate(m, size=self.sides, mode=mode, align_corners=False) for m in self._chosen(images)]
        features = self.standardise(torch.cat(wide, dim=1))
        return 1 - local_similarity(self.autoencoder(features), features).mean(1)


def local_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM around every place (Wang et al. 2004), with uniform windows that end where the map ends.

    `losses.similarity` gives means over whole images; MONAI's windows are convolutions, which are slow in 3D.

    Args:
        a, b: feature maps `(B, C, *S)`.

    Returns:
        `(B, C, *S)`, at most 1.
    """
    mean_a, mean_b, square_a, square_b, product = _window_means(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    variance_a, variance_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = (0.01 * FEATURE_RANGE) ** 2, (0.03 * FEATURE_RANGE) ** 2
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * contrast


def _window_means(x: Tensor) -> Tensor:
    """Mean of `(B, C, *S)`, sides equal, over the window around every place: a product with a small matrix along each axis."""
    place = torch.arange(x.shape[-1], device=x.device)
    near = ((place[:, None] - place).abs() <= WINDOW // 2).to(x.dtype)
    matrix = near / near.sum(0)
    for axis in range(2, x.ndim):
        x = (x.transpose(axis, -1) @ matrix).transpose(axis, -1)
    return x


class FeatureAutoencoder:
    """Features come from the experiment's identity network; the score is the worst place of 1 - SSIM.

    Args:
        layers: maps of the identity network, 0 the stem and 1 to 4 its stages, finest first.
        width: channels of the autoencoder's first stage.
        learning_rate, batch_size: of the training.
        score: see `FeatureScore`.
    """

    supervision: Literal["none", "synthetic"] = "none"
    stages = ("auxiliary",)

    def __init__(
        self,
        *,
        layers: Sequence[int] = (0, 1, 2),
        width: int = 32,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        score: FeatureScore = "worst",
    ) -> None:
        check_positive(width=width, learning_rate=learning_rate, batch_size=batch_size)
        check_choice("score", score, FeatureScore)
        self.layers = tuple(layers)
        if not self.layers or not set(self.layers) <= set(range(5)) or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers is {self.layers}; expected different numbers from 0 to 4, ascending")
        self.width, self.learning_rate, self.batch_size, self.score = width, learning_rate, batch_size, score

    def fit(self, training: Training) -> Self:
        """Train the autoencoder on features of normal images.

        Raises:
            DataError: the experiment has no trained identity network, its maps are too small, or there are no images.
            CheckpointError: the network's file is damaged.
        """
        course = Course(training, "fae", batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training)
        extractor = identity_network(training)
        with fresh_weights(training, "fae"):
            network = FeatureNetwork(extractor, self.layers, training.healthy.shape, width=self.width)
        if network.sides[-1] < 4:
            raise DataError(
                f"fae: layer {self.layers[0]} of the identity network has a side of {network.sides[-1]}; "
                "the autoencoder halves it twice and needs at least 4: take a finer layer"
            )
        self.network_ = network.to(training.device)

        def loss(step: Step) -> Tensor:
            seen = inputs(step.batch)
            return self._mean(network(seen.images), seen).mean()

        self.loss_ = minimise(course, network, loss, learning_rate=self.learning_rate)
        return self

    @torch.no_grad()
    def decision_function(self, batch: ImageBatch) -> Scores:
        """Scores (B,), in [0, 2]."""
        seen = self.inputs_(batch)
        found = self.network_(seen.images)
        scores = self._mean(found, seen) if self.score == "mean" else worst(found.flatten(1), self._share(seen))
        return scores.double().cpu().numpy()

    @torch.no_grad()
    def anomaly_map(self, batch: ImageBatch) -> Tensor:
        """1 - SSIM, interpolated to the image's resolution, float32 (B, 1, *S); 0 outside of the masks."""
        seen = self.inputs_(batch)
        sides = seen.images.shape[2:]
        coarse = self.network_(seen.images)[:, None]
        fine = F.interpolate(coarse, size=tuple(sides), mode=_INTERPOLATION[len(sides)], align_corners=False)
        return (fine if seen.masks is None else fine * seen.masks).cpu()

    def _share(self, seen: Seen) -> Tensor | None:
        return resampled(seen.masks, self.network_.sides)

    def _mean(self, found: Tensor, seen: Seen) -> Tensor:
        return weighted_mean(found.flatten(1), self._share(seen))


def identity_network(training: Training) -> AuxiliaryNetwork:
    """The experiment's frozen identity network, on the device.

    Raises:
        DataError: the experiment was not run so far.
        CheckpointError: the file is damaged.
    """
    folder = training.folders.get("auxiliary")
    if folder is None:
        raise DataError(
            "fae: needs the identity network of a finished experiment; run `normscape run` with this configuration first"
        )
    attribute = training.config.attributes[0]
    network = AuxiliaryNetwork.from_config(attribute, training.config)
    load_module(network, folder / f"{attribute.name}.safetensors")
    return network.to(training.device).fold()
