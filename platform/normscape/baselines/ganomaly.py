"""GANomaly: an image whose rebuilt form has other latents is abnormal (Akcay et al. 2018)."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from monai.networks.nets.classifier import Discriminator
from torch import Tensor, nn

from normscape.baselines import Training
from normscape.baselines.fanogan import PublishedScore
from normscape.baselines.learning import Course, Descent, Inputs, Seen, check_positive, collected, fresh_weights
from normscape.baselines.networks import ACTIVATION, NORM, decoder, encoder, stage_widths
from normscape.baselines.rebuilding import ResidualDetector
from normscape.losses.reconstruction import pixel_residual
from normscape.networks.auxiliary import freeze

BETAS = (0.5, 0.999)
"""Of Adam, as in the paper."""


class Ganomaly(ResidualDetector):
    """Encoder, decoder and a second encoder, trained against a discriminator.

    The published score is the mean absolute difference of the two encoders' latents.

    Args:
        width: channels of the finest stage of all networks.
        latent: width of the latent vectors.
        adversarial_weight, contextual_weight, encoder_weight: of the discriminator's features, the pixels and the latents.
        learning_rate, batch_size: of the training.
        score: see `PublishedScore`.
        neighbourhood: see `ResidualDetector`; also of the map, which is a residual in any case.
    """

    def __init__(
        self,
        *,
        width: int = 32,
        latent: int = 64,
        adversarial_weight: float = 1.0,
        contextual_weight: float = 50.0,
        encoder_weight: float = 1.0,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        score: PublishedScore = "published",
        neighbourhood: int | None = None,
    ) -> None:
        super().__init__(score=score, neighbourhood=neighbourhood, scores=PublishedScore)
        check_positive(
            width=width, latent=latent, contextual_weight=contextual_weight, encoder_weight=encoder_weight,
            adversarial_weight=adversarial_weight, learning_rate=learning_rate, batch_size=batch_size,
        )  # fmt: skip
        self.width, self.latent = width, latent
        self.adversarial_weight, self.contextual_weight = adversarial_weight, contextual_weight
        self.encoder_weight, self.learning_rate, self.batch_size = encoder_weight, learning_rate, batch_size

    def fit(self, training: Training) -> Self:
        """Train the three networks against the discriminator, and freeze them.

        Raises:
            DataError: there are no images.
        """
        course = Course(training, "ganomaly", batch_size=self.batch_size)
        self.inputs_ = inputs = Inputs(training)
        shape = training.healthy.shape
        channels = stage_widths(shape[-1], self.width)
        with fresh_weights(training, "ganomaly"):
            self.network_ = nn.ModuleDict(
                {
                    "encoder": encoder(shape, self.latent, width=self.width),
                    "decoder": decoder(shape, self.latent, width=self.width),
                    "second": encoder(shape, self.latent, width=self.width),
                }
            ).to(training.device)
            judge = Discriminator(
                shape, channels, (2,) * len(channels), num_res_units=0, act=ACTIVATION, norm=NORM, dropout=None, last_act=None
            ).to(training.device)
        descent = Descent(self.network_, learning_rate=self.learning_rate, steps=course.steps, betas=BETAS)
        judge_descent = Descent(judge, learning_rate=self.learning_rate, steps=course.steps, betas=BETAS)
        losses = []
        for step in course.batches():
            seen = inputs(step.batch)
            latents, fake = self._passed(seen)
            with torch.no_grad():
                real_features = judge.net(seen.images)
            adversarial = F.mse_loss(judge.net(fake), real_features)
            contextual = pixel_residual(seen.images, fake, "l1", seen.masks).mean()
            again = F.mse_loss(self.network_["second"](fake), latents)
            loss = self.adversarial_weight * adversarial + self.contextual_weight * contextual + self.encoder_weight * again
            losses.append(descent.step(loss))
            real_logits, fake_logits = judge(seen.images), judge(fake.detach())
            judge_descent.step(F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())
        freeze(self.network_)
        self.loss_ = collected(losses)
        return self

    def _passed(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """Latents (B, latent), and the image rebuilt from them, (B, C, *S), as it is outside of the masks."""
        latents = self.network_["encoder"](seen.images)
        return latents, seen.fill(self.network_["decoder"](latents).tanh())

    def rebuilt(self, seen: Seen) -> Tensor:
        """What comes out of the decoder, (B, C, *S)."""
        return self._passed(seen)[1]

    def _scores(self, seen: Seen) -> Tensor:
        if self.score != "published":
            return super()._scores(seen)
        latents, rebuilt = self._passed(seen)
        return torch.abs(latents - self.network_["second"](rebuilt)).mean(1)
