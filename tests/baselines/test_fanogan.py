"""f-AnoGAN: the parts of its two trainings, and its score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normscape.baselines.fanogan import FastAnoGan
from normscape.baselines.learning import Inputs

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "latent": 8}


class Slope(nn.Module):
    """A critic whose gradient has a known length."""

    def __init__(self, length: float, values: int) -> None:
        super().__init__()
        self.each = length / values**0.5

    def forward(self, images: Tensor) -> Tensor:
        return self.each * images.flatten(1).sum(1, keepdim=True)


def test_the_gradient_penalty() -> None:
    """A slope of 3 is 2 away from 1, wherever it is measured."""
    detector = FastAnoGan(**SMALL)
    detector.critic_ = Slope(3.0, 2 * 64)
    real, fake = torch.randn(2, 5, 2, 8, 8)
    found = detector._gradient_penalty(real, fake, torch.Generator().manual_seed(0))
    assert float(found) == pytest.approx(4.0, rel=1e-4)


def test_generated_images_have_the_masks_of_real_ones(toy_training: Callable[..., Any]) -> None:
    """The critic sees black at the same places in both."""
    toy = toy_training("patches", network_images=64)
    detector = FastAnoGan(**SMALL).fit(toy.training)
    seen = Inputs(toy.training)(toy.unseen)
    with torch.no_grad():
        fake = detector._imagined(seen, torch.Generator().manual_seed(0))
    assert torch.equal((fake == -1) & ~toy.unseen.masks, ~toy.unseen.masks)
    assert float(fake[toy.unseen.masks].std()) > 0


def test_the_gan_gets_its_share_and_stays_as_it_was(toy_training: Callable[..., Any]) -> None:
    """20 batches: 14 for the critic, 7 of them for the generator too, 6 for the encoder; all are frozen afterwards."""
    toy = toy_training(network_images=320)
    detector = FastAnoGan(**SMALL)
    detector.fit(toy.training)
    assert detector.critic_loss_.shape == (14,)
    assert detector.loss_.shape == (6,)
    for network in (detector.generator_, detector.critic_, detector.encoder_):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_the_published_score(toy_training: Callable[..., Any]) -> None:
    """Squared differences of pixels, and of the critic's features by their weight; no weight leaves the pixels."""
    toy = toy_training(network_images=160)
    detector = FastAnoGan(**SMALL).fit(toy.training)
    scores = detector.decision_function(toy.unseen)
    seen = detector.inputs_(toy.unseen)
    with torch.no_grad():
        rebuilt = detector.rebuilt(seen)
        squared = (seen.images - rebuilt).square().flatten(1).mean(1)
    assert (scores > squared.numpy()).all()
    detector.feature_weight = 0.0
    np.testing.assert_allclose(detector.decision_function(toy.unseen), squared.double().numpy(), rtol=1e-5)


def test_the_critic_learns_to_tell(toy_training: Callable[..., Any]) -> None:
    """With a generator that hardly moves, real images get higher values than generated ones."""
    toy = toy_training(network_images=960)
    detector = FastAnoGan(critic_steps=100, gan_share=0.9, gan_learning_rate=1e-2, **SMALL).fit(toy.training)
    seen = detector.inputs_(toy.unseen)
    with torch.no_grad():
        fake = detector._imagined(seen, torch.Generator().manual_seed(0))
        assert float(detector.critic_(seen.images).mean()) > float(detector.critic_(fake).mean()) + 0.1


def test_settings() -> None:
    """Something has to be left for the encoder."""
    with pytest.raises(ValueError, match=r"gan_share is 1\.0"):
        FastAnoGan(gan_share=1.0)
