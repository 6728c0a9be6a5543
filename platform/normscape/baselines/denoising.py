"""Denoising autoencoder: a U-Net that removes coarse noise removes anomalies, too (Kascenas et al. 2022)."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from normscape.baselines import Training
from normscape.baselines.learning import Course, Inputs, Seen, Step, check_positive, fresh_weights, minimise
from normscape.baselines.networks import FoldedUNet
from normscape.baselines.noise import coarse_noise
from normscape.baselines.rebuilding import ResidualDetector, ResidualScore
from normscape.losses.reconstruction import pixel_residual

WIDTH = {2: 32, 3: 16}
"""Channels of the finest stage by dimension, unless set; the same time an image, about."""


class DenoisingAutoencoder(ResidualDetector):
    """Noise is added to normal images only while training; the score is the worst neighbourhood of the difference.

    Args:
        width: channels of the U-Net's finest stage; WIDTH when empty.
        noise: standard deviation of the noise at its grid's nodes, in intensity units (2 from black to white).
        cells: nodes of the noise's grid along a side.
        learning_rate, batch_size: of the training.
        score, neighbourhood: see `ResidualDetector`.
    """

    def __init__(
        self,
        *,
        width: int | None = None,
        noise: float = 0.4,
        cells: int = 4,
        learning_rate: float = 2e-3,
        batch_size: int = 32,
        score: ResidualScore = "worst",
        neighbourhood: int | None = None,
    ) -> None:
        super().__init__(score=score, neighbourhood=neighbourhood)
        check_positive(
            width=WIDTH[2] if width is None else width,
            noise=noise,
            cells=cells,
            learning_rate=learning_rate,
            batch_size=batch_size,
        )
        self.width, self.noise, self.cells = width, noise, cells
        self.learning_rate, self.batch_size = learning_rate, batch_size

    def fit(self, training: Training) -> Self:
        """Train it to remove noise from normal images.

        Raises:
            DataError: there are no images.
        """
        course = Course(training, "denoising", batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training)
        shape, dims = training.healthy.shape, training.scene.dims
        with fresh_weights(training, "denoising"):
            network = FoldedUNet(dims, shape[0], shape[0], width=self.width or WIDTH[dims])
        self.network_ = network.to(training.device)

        def loss(step: Step) -> Tensor:
            seen = inputs(step.batch)
            noise = coarse_noise(len(seen.images), shape, cells=self.cells, random=step.random).to(seen.images.device)
            cleaned = network(seen.fill(seen.images + self.noise * noise), seen.values)
            return pixel_residual(seen.images, cleaned, "l2", seen.masks).mean()

        self.loss_ = minimise(course, network, loss, learning_rate=self.learning_rate)
        return self

    def rebuilt(self, seen: Seen) -> Tensor:
        """What the network makes of images without added noise, (B, C, *S)."""
        images: Tensor = self.network_(seen.images, seen.values)
        return images
