"""The denoising autoencoder removes what it learned to remove."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from normscape.baselines.denoising import DenoisingAutoencoder
from normscape.baselines.noise import coarse_noise

SMALL: dict[str, Any] = {"width": 8, "batch_size": 16, "learning_rate": 1e-2}


def test_it_removes_coarse_noise(toy_training: Callable[..., Any]) -> None:
    """Images with new noise come closer to what they were before, and change less without it."""
    toy = toy_training("patches", network_images=1280)
    detector = DenoisingAutoencoder(**SMALL).fit(toy.training)
    images = toy.training.healthy.batch(torch.arange(48))
    noise = coarse_noise(48, toy.training.healthy.shape, cells=4, random=torch.Generator().manual_seed(9))
    seen, noised = (detector.inputs_(batch) for batch in (images, images.with_images(images.images + 0.4 * noise)))
    with torch.no_grad():
        left = seen.difference(detector.rebuilt(noised)).abs().mean()
        untouched = seen.difference(detector.rebuilt(seen)).abs().mean()
    added = seen.difference(noised.images).abs().mean()
    assert float(left) < 0.8 * float(added)
    assert float(untouched) < float(left)


def test_without_noise_it_would_copy(toy_training: Callable[..., Any]) -> None:
    """Hardly any noise in training: anomalies are rebuilt better than by one that learned to remove noise."""
    toy = toy_training(network_images=1280)
    kept = {}
    for noise in (0.01, 0.8):
        detector = DenoisingAutoencoder(noise=noise, score="mean", **SMALL).fit(toy.training)
        kept[noise] = detector.decision_function(toy.abnormal).mean()
    assert kept[0.01] < 0.85 * kept[0.8]
