"""f-AnoGAN: a GAN of normal images, and an encoder that finds the nearest one in one pass (Schlegl et al. 2019)."""

from __future__ import annotations

from typing import Literal, Self

import torch
from monai.networks.nets.classifier import Critic
from torch import Tensor

from normscape.baselines import Training
from normscape.baselines.learning import (
    Course,
    Descent,
    Inputs,
    Seen,
    Step,
    check_positive,
    collected,
    fresh_weights,
    minimise,
)
from normscape.baselines.networks import ACTIVATION, decoder, encoder, stage_widths
from normscape.baselines.rebuilding import ResidualDetector
from normscape.losses.reconstruction import per_sample_mean, pixel_residual
from normscape.networks.auxiliary import freeze

PublishedScore = Literal["published", "worst", "top", "mean"]
"""`published`: the paper's own score; the others as of every detector that rebuilds."""
BETAS = (0.0, 0.9)
"""Of Adam under a gradient penalty (Gulrajani et al. 2017)."""


class FastAnoGan(ResidualDetector):
    """WGAN-GP, then an encoder trained by izi_f: image to latents to image, compared in pixels and in the critic's features.

    The published score is `mean (x - y)^2 + k mean (f(x) - f(y))^2`, y the rebuilt image and f the critic's last features.

    Args:
        width: channels of the finest stage of all three networks.
        latent: width of the latent vector.
        gan_share: share of the images that the GAN is trained on; the encoder gets the others.
        critic_steps: steps of the critic for one of the generator.
        penalty: weight of the critic's gradient penalty.
        feature_weight: k.
        gan_learning_rate, learning_rate: of the GAN and of the encoder.
        batch_size: of both trainings.
        score: see `PublishedScore`.
        neighbourhood: see `ResidualDetector`; also of the map, which is a residual in any case.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        latent: int = 64,
        gan_share: float = 0.7,
        critic_steps: int = 2,
        penalty: float = 10.0,
        feature_weight: float = 1.0,
        gan_learning_rate: float = 5e-4,
        learning_rate: float = 1e-3,
        batch_size: int = 32,
        score: PublishedScore = "published",
        neighbourhood: int | None = None,
    ) -> None:
        super().__init__(score=score, neighbourhood=neighbourhood, scores=PublishedScore)
        check_positive(
            width=width, latent=latent, gan_share=gan_share, critic_steps=critic_steps, penalty=penalty, batch_size=batch_size,
            gan_learning_rate=gan_learning_rate, learning_rate=learning_rate,
        )  # fmt: skip
        if not gan_share < 1 or feature_weight < 0:
            raise ValueError(f"gan_share is {gan_share}, feature_weight is {feature_weight}; expected below 1, and at least 0")
        self.width, self.latent, self.gan_share, self.critic_steps = width, latent, gan_share, critic_steps
        self.penalty, self.feature_weight = penalty, feature_weight
        self.gan_learning_rate, self.learning_rate, self.batch_size = gan_learning_rate, learning_rate, batch_size

    def fit(self, training: Training) -> Self:
        """Train the GAN, freeze it, and train the encoder.

        Raises:
            DataError: there are no images.
        """
        course = Course(training, "fanogan", batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training)
        shape = training.healthy.shape
        channels = stage_widths(shape[-1], self.width)
        with fresh_weights(training, "fanogan"):
            self.generator_ = decoder(shape, self.latent, width=self.width).to(training.device)
            # no batch norm: the penalty is on the gradient at each image alone
            critic = Critic(shape, channels, (2,) * len(channels), num_res_units=0, act=ACTIVATION, norm=None, dropout=None)
            self.encoder_ = encoder(shape, self.latent, width=self.width).to(training.device)
        self.critic_ = critic.to(training.device)
        self.critic_loss_ = self._fit_gan(course, round(course.steps * self.gan_share))

        def loss(step: Step) -> Tensor:
            seen = inputs(step.batch)
            return self._distance(seen, self.rebuilt(seen)).mean()

        self.loss_ = minimise(course, self.encoder_, loss, learning_rate=self.learning_rate)
        return self

    def _fit_gan(self, course: Course, steps: int) -> Tensor:
        """Train generator and critic, and freeze them; the critic's losses, (steps,)."""
        critic_descent = Descent(self.critic_, learning_rate=self.gan_learning_rate, steps=steps, betas=BETAS)
        descent = Descent(self.generator_, learning_rate=self.gan_learning_rate, steps=steps // self.critic_steps, betas=BETAS)
        losses = []
        for number, step in enumerate(course.batches(steps), start=1):
            seen = self.inputs_(step.batch)
            with torch.no_grad():
                fake = self._imagined(seen, step.random)
            real_value, fake_value = self.critic_(seen.images).mean(), self.critic_(fake).mean()
            penalty = self._gradient_penalty(seen.images, fake, step.random)
            losses.append(critic_descent.step(fake_value - real_value + self.penalty * penalty))
            if number % self.critic_steps == 0:
                descent.step(-self.critic_(self._imagined(seen, step.random)).mean())
        freeze(self.critic_)
        freeze(self.generator_)
        return collected(losses)

    def _imagined(self, seen: Seen, random: torch.Generator) -> Tensor:
        """Images of random latents under the masks of real ones, so that the critic cannot go by the masks: (B, C, *S)."""
        latents = torch.randn(len(seen.images), self.latent, generator=random).to(seen.images.device)
        return seen.fill(self.generator_(latents).tanh())

    def _gradient_penalty(self, real: Tensor, fake: Tensor, random: torch.Generator) -> Tensor:
        """How far the critic's gradients between real and generated images are from length 1, squared, averaged."""
        place = torch.rand(len(real), *(1,) * (real.ndim - 1), generator=random).to(real.device)
        between = torch.lerp(real, fake, place).requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.critic_(between).sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def _distance(self, seen: Seen, rebuilt: Tensor) -> Tensor:
        """The published score, (B,)."""
        squared = pixel_residual(seen.images, rebuilt, "l2", seen.masks)
        features = self.critic_.net[:-1]
        difference = features(seen.images) - features(seen.fill(rebuilt))
        return squared + self.feature_weight * per_sample_mean(difference.square())

    def rebuilt(self, seen: Seen) -> Tensor:
        """What the generator makes of the encoder's latents, (B, C, *S)."""
        images: Tensor = self.generator_(self.encoder_(seen.images)).tanh()
        return images

    def _scores(self, seen: Seen) -> Tensor:
        return self._distance(seen, self.rebuilt(seen)) if self.score == "published" else super()._scores(seen)
