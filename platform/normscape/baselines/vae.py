"""Variational autoencoder: the bound on an image's likelihood is its score (Kingma and Welling 2014; Baur et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

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
from normscape.baselines.rebuilding import ResidualDetector
from normscape.losses.reconstruction import pixel_residual

VaeScore = Literal["evidence", "worst", "top", "mean"]
"""`evidence`: the negative bound a pixel; the others as of every detector that rebuilds."""
_LOG_VARIANCE_RANGE = (-12.0, 6.0)
"""Keeps the exponential finite at the start of a training."""
_DEVIATION_SPEED = 10.0
"""The deviation's logarithm learns so many times faster than a weight: it has a long way to go, and steps are few."""


class VariationalNetwork(Bottleneck):
    """Encoder to mean and log variance, decoder, and one deviation for all pixels, learned (Rybkin et al. 2021).

    Args:
        shape, latent, width, values: see `Bottleneck`.
    """

    def __init__(self, shape: Sequence[int], *, latent: int, width: int, values: int) -> None:
        super().__init__(shape, latent=latent, outputs=2 * latent, width=width, values=values)
        self.deviation = nn.Parameter(torch.zeros(()))

    @property
    def log_deviation(self) -> Tensor:
        """log s, s the standard deviation of a pixel given the latents; 1 at the start."""
        return self.deviation * _DEVIATION_SPEED

    def posterior(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, `(B, latent)` each."""
        mean, log_variance = self.encode(seen.images, seen.values).chunk(2, dim=1)
        return mean, log_variance.clamp(*_LOG_VARIANCE_RANGE)

    def negative_bound(self, seen: Seen, rebuilt: Tensor, mean: Tensor, log_variance: Tensor, beta: float) -> Tensor:
        """Minus the evidence bound, divided by the number of pixel values that count and less a constant, `(B,)`.

        With n such values, x the image and y what the decoder makes of it:
        `log s + mean (x - y)^2 / (2 s^2) + beta / n * KL(q(z | x) || N(0, 1))`.
        """
        squared = pixel_residual(seen.images, rebuilt, "l2", seen.masks)
        values = seen.images[0].numel() if seen.masks is None else seen.masks.flatten(1).sum(1) * seen.images.shape[1]
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        counted = torch.as_tensor(values, device=divergence.device).clamp(min=1)
        return self.log_deviation + squared * (-2 * self.log_deviation).exp() / 2 + beta * divergence / counted


class VariationalAutoencoder(ResidualDetector):
    """A VAE with a Gaussian likelihood; the score is the negative evidence bound a pixel, or a residual.

    Args:
        width: channels of the finest stage.
        latent: width of the latent vector.
        beta: weight of the divergence from the prior (Higgins et al. 2017); 1 is the bound itself.
        learning_rate, batch_size: of the training.
        conditions: known values that encoder and decoder see; see `Conditions`.
        score: see `VaeScore`.
        neighbourhood: see `ResidualDetector`; also of the map, which is a residual in any case.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        latent: int = 64,
        beta: float = 1.0,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        conditions: Conditions = "none",
        score: VaeScore = "evidence",
        neighbourhood: int | None = None,
    ) -> None:
        super().__init__(score=score, neighbourhood=neighbourhood, scores=VaeScore)
        check_positive(width=width, latent=latent, beta=beta, learning_rate=learning_rate, batch_size=batch_size)
        check_choice("conditions", conditions, Conditions)
        self.width, self.latent, self.beta, self.learning_rate, self.batch_size = width, latent, beta, learning_rate, batch_size
        self.conditions: Conditions = conditions

    def fit(self, training: Training) -> Self:
        """Maximise the bound on normal images.

        Raises:
            DataError: there are no images, or no values where conditions are asked for.
        """
        course = Course(training, "vae", batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training, self.conditions)
        with fresh_weights(training, "vae"):
            network = VariationalNetwork(training.healthy.shape, latent=self.latent, width=self.width, values=inputs.width)
        self.network_ = network.to(training.device)

        def loss(step: Step) -> Tensor:
            seen = inputs(step.batch)
            mean, log_variance = network.posterior(seen)
            noise = torch.randn(mean.shape, generator=step.random).to(mean.device)
            rebuilt = network.decode(mean + (log_variance / 2).exp() * noise, seen.values)
            return network.negative_bound(seen, rebuilt, mean, log_variance, self.beta).mean()

        self.loss_ = minimise(course, network, loss, learning_rate=self.learning_rate)
        return self

    def rebuilt(self, seen: Seen) -> Tensor:
        """What the decoder makes of the mean latents, (B, C, *S)."""
        return self.network_.decode(self.network_.posterior(seen)[0], seen.values)

    def _scores(self, seen: Seen) -> Tensor:
        if self.score != "evidence":
            return super()._scores(seen)
        mean, log_variance = self.network_.posterior(seen)
        rebuilt = self.network_.decode(mean, seen.values)
        return self.network_.negative_bound(seen, rebuilt, mean, log_variance, self.beta)
