"""Autoencoder: what does not pass through a narrow latent vector is abnormal (Baur et al. 2021)."""

from __future__ import annotations

from typing import Literal, Self

from torch import Tensor

from normscape.baselines import Training
from normscape.baselines.learning import (
    Conditions,
    Course,
    Inputs,
    Seen,
    Step,
    check_choice,
    check_positive,
    fresh_weights,
    minimise,
)
from normscape.baselines.networks import Bottleneck
from normscape.baselines.rebuilding import ResidualDetector, ResidualScore
from normscape.losses.reconstruction import pixel_residual


class Autoencoder(ResidualDetector):
    """Convolutions to a latent vector and back; the score is the worst neighbourhood of the difference.

    Args:
        width: channels of the finest stage.
        latent: width of the latent vector.
        learning_rate, batch_size: of the training.
        loss: pixel loss under the mask, `l1` or `l2`.
        conditions: known values that encoder and decoder see; see `Conditions`.
        score, neighbourhood: see `ResidualDetector`.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        latent: int = 64,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        loss: Literal["l1", "l2"] = "l1",
        conditions: Conditions = "none",
        score: ResidualScore = "worst",
        neighbourhood: int | None = None,
    ) -> None:
        super().__init__(score=score, neighbourhood=neighbourhood)
        check_positive(width=width, latent=latent, learning_rate=learning_rate, batch_size=batch_size)
        check_choice("loss", loss, Literal["l1", "l2"])
        check_choice("conditions", conditions, Conditions)
        self.width, self.latent, self.learning_rate, self.batch_size = width, latent, learning_rate, batch_size
        self.loss: str = loss
        self.conditions: Conditions = conditions

    def fit(self, training: Training) -> Self:
        """Train it to rebuild normal images.

        Raises:
            DataError: there are no images, or no values where conditions are asked for.
        """
        course = Course(training, "autoencoder", batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training, self.conditions)
        with fresh_weights(training, "autoencoder"):
            network = Bottleneck(
                training.healthy.shape, latent=self.latent, outputs=self.latent, width=self.width, values=inputs.width
            )
        self.network_ = network.to(training.device)

        def loss(step: Step) -> Tensor:
            seen = inputs(step.batch)
            return pixel_residual(seen.images, self.rebuilt(seen), self.loss, seen.masks).mean()

        self.loss_ = minimise(course, network, loss, learning_rate=self.learning_rate)
        return self

    def rebuilt(self, seen: Seen) -> Tensor:
        """What comes out of the decoder, (B, C, *S)."""
        return self.network_.decode(self.network_.encode(seen.images, seen.values), seen.values)
